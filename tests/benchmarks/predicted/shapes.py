"""What LLaMA's blocks ask of a GPU: operations and bytes from shapes, launches from counts.

Bytes are those of PyTorch's operations one by one, as a module calls them: a bfloat16 number that
is read and written is 4, one that is widened to float32 is 6. Constants in bytes per channel (or
per weight) say which operations they add up.
"""

from dataclasses import dataclass

from duquant.model.structure import SITES
from duquant.ops.device_search import STEPS_AT_ONCE
from duquant.preflight.job import Job
from tests.benchmarks.predicted.card import Work
from tests.ceilings import (
    KERNELS_OF_A_SEARCH_STEP,
    LAUNCHES_OF_A_STEP,
    WAITS_OF_A_SEARCH,
)

HALF, WIDE = 2, 4
"""Bytes of a bfloat16 and of a float32 number."""
NORM = 36
"""Per channel: widened 6, squared 8, its mean 4, scaled 8, narrowed 6, times the weight 4."""
ROPE = 20
"""Per channel of Q and of K: times the cosine 4, a half negated 2, joined 4, times the sine 4,
added 6."""
RESIDUAL = 6
ACTIVATION = 10
"""Per channel of gate and up: SiLU 4, their product 6."""
ROTATED = 4
"""Per channel and rotation."""
FAKED = 4
"""Per channel: read and written; read for its ends first, it comes from the cache then."""
FAKED_WEIGHT = 14
"""Per weight: quantized and dequantized 8, narrowed 6."""
FAKED_WEIGHT_GRADIENT = 16
"""Per weight: its gradient written 2, widened 6, read with the weight 8."""
BACKWARD = 2
"""How many times as much as forwards: gradients, and what was kept for them."""
FLASH_FORWARD, FLASH_BACKWARD = 2.3, 5.0
"""What an operation of FlashAttention 2 takes, in operations of a large product. Measured by others
on an H100, causal, heads of 128: 306 TFLOPS forwards and 166 backwards; in one order FlashAttention
3 took 1.2 to 1.6 times as long (Dao-AILab/flash-attention, pull request 1893). At 0.7 of the data
sheet's operations, the optimistic share, these come to 301 and 139."""
FLASH_PRODUCTS = 2.5
"""Backwards five products of scores' size, forwards two."""
LEARNED_ROTATIONS = 7
"""Products of a weight with a rotation's blocks in a step: two forwards, one once more backwards,
two gradients of blocks, two of what they were given (one is not needed)."""
LEARNED_WEIGHT = 72
"""Per weight: two rotations and a permutation forwards 24, twice as much backwards."""
DEQUANTIZED = 14
"""Per weight that is unpacked: taken apart 2, joined 2, made float32 4 to 6, narrowed 6."""


@dataclass(frozen=True)
class Block:
    """Sizes of a decoder block.

    Attributes:
        hidden: channels of the hidden states; also of Q, K and V each.
        inner: channels of the MLP.
        weights: of its linears.
        linear_ends: inputs and outputs of its linears, added up.
        rows: outputs of each linear.
        widths: channels of its sites.
        rotation: channels of a rotation block.
        length: tokens of a sequence.
        heads: of attention.
    """

    hidden: int
    inner: int
    weights: int
    linear_ends: int
    rows: tuple[int, ...]
    widths: tuple[int, ...]
    rotation: int
    length: int
    heads: int

    @classmethod
    def of(cls, job: Job) -> "Block":
        """Of a model with as many heads of K as of Q."""
        shapes, config = job.linears, job.decoder.config
        return cls(
            hidden=job.streams.hidden,
            inner=int(config.intermediate_size),
            weights=job.block_weights,
            linear_ends=sum(map(sum, shapes.values())),
            rows=tuple(rows for rows, _ in shapes.values()),
            widths=tuple(shapes[site.linears[0]][1] for site in SITES),
            rotation=job.recipe.rotation.block_size,
            length=job.streams.tokens,
            heads=int(config.num_attention_heads),
        )

    def products(self, tokens: float) -> float:
        """Operations of the linears, a product with its sum counting as two."""
        return 2.0 * self.weights * tokens

    def fused_attention(self, tokens: float) -> Work:
        """One kernel, which leaves out what the mask hides."""
        operations = 2.0 * tokens * self.length * self.hidden
        return Work(half=operations, traffic=4 * HALF * tokens * self.hidden)

    def trained_attention(self, tokens: float, *, forwards: int) -> Work:
        """FlashAttention ``forwards`` times, and backwards in one order after one forward more."""
        forward = self.fused_attention(tokens)
        of_backward = FLASH_PRODUCTS * FLASH_BACKWARD
        counted = FLASH_FORWARD * (forwards + 1) + of_backward
        traffic = (forwards + 1 + FLASH_PRODUCTS) * forward.traffic
        return Work(half=counted * forward.half, traffic=traffic)

    def between(self, tokens: float) -> Work:
        """Norms, RoPE, residuals, SiLU, and what linears read and write beside their weights."""
        of_hidden = 2 * NORM + 2 * ROPE + 2 * RESIDUAL
        of_token = of_hidden * self.hidden + ACTIVATION * self.inner + HALF * self.linear_ends
        return Work(traffic=tokens * of_token)

    def rotated(self, tokens: float) -> float:
        """Operations of the sites' two rotations, and of one of Q and of K."""
        return 2.0 * tokens * self.rotation * (2 * sum(self.widths) + 2 * self.hidden)

    def faked(self, tokens: float) -> Work:
        """Sites, Q, K and V rotated, quantized and dequantized."""
        of_sites = (2 * ROTATED + FAKED) * sum(self.widths)
        of_attention = 2 * (ROTATED + FAKED) * self.hidden + FAKED * self.hidden
        return Work(half=self.rotated(tokens), traffic=tokens * (of_sites + of_attention))

    def original(self, tokens: float, passes: float) -> Work:
        """A block before it is quantized; its weights are read once in each of ``passes``."""
        weights = Work(half=self.products(tokens), traffic=HALF * self.weights * passes)
        return weights + self.fused_attention(tokens) + self.between(tokens)

    def quantized(self, tokens: float, passes: float) -> Work:
        """The same when it is quantized and nothing learns: values of codes are float32."""
        narrowed = Work(traffic=(WIDE + HALF) * self.weights * passes)
        return self.original(tokens, passes) + self.faked(tokens) + narrowed


def training_step(block: Block, tokens: int, *, learns_all: bool) -> dict[str, Work]:
    """A step of a block, forwards and backwards, by part."""
    kind = "everything" if learns_all else "LWC"
    between = (block.between(tokens) + block.faked(tokens)) * (1 + BACKWARD)
    weight_bytes = FAKED_WEIGHT + FAKED_WEIGHT_GRADIENT + 3 * HALF
    parts = {
        "products of the linears": Work(half=3 * block.products(tokens)),
        "attention": block.trained_attention(tokens, forwards=1),
        "between the products": between,
        "fake quantization of weights": Work(traffic=weight_bytes * block.weights),
        "the host": Work(launches=LAUNCHES_OF_A_STEP[kind], steps=1),
    }
    if learns_all:
        operations = 2.0 * LEARNED_ROTATIONS * block.rotation * block.weights
        learned = Work(full=operations, traffic=LEARNED_WEIGHT * block.weights)
        parts["transforms of weights"] = learned
    return parts


def searches(block: Block, steps: int, selector: str) -> Work:
    """Two rotation searches of every site, on one sequence, as CUDA graphs."""
    entries = 2.0 * steps * block.length * sum(block.widths)
    count = 2 * len(block.widths)
    questions = -(-steps // STEPS_AT_ONCE)
    return Work(
        replayed=count * steps * KERNELS_OF_A_SEARCH_STEP[selector],
        waits=count * (WAITS_OF_A_SEARCH[selector] + 2 * questions - 1),  # a graph asks once more
        full=2.0 * entries * block.rotation,
        traffic=3 * WIDE * entries,  # rows are read, products written and read
    )
