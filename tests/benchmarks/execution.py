"""What a quantized block costs against the same block in bfloat16 (and float32), on this machine.

    python -m tests.benchmarks.execution --tokens 2048
    python -m tests.benchmarks.execution --hidden 1024 --intermediate 2816 --tokens 256   # a taste

LLaMA-2-7B's shapes, random weights, one process, everything in one run: prefill of one sequence and
decoding of one token behind it. Both sides run eagerly and compiled; the faster counts. All numbers
are medians; ratios are times of the baseline over times of the quantized block. The roofline is the
int8 matrix product alone over the baseline's matrix product alone.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from duquant.config import LWCConfig, Recipe, RotationConfig
from duquant.export.packed_block import pack_block, unpack_block
from duquant.model.execution import configure_execution
from duquant.model.structure import LINEARS, SITES
from duquant.nn.attention import ATTENTION_NAME
from duquant.nn.execution import Execution
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.site import SiteNorm, SiteTransform
from tests.benchmarks.loading import quantize


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median of several runs after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def plain_block(config: LlamaConfig, dtype: torch.dtype) -> nn.Module:
    """A block of random weights."""
    block = LlamaDecoderLayer(config, 0)
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02)
    return block.to(dtype).eval().requires_grad_(False)


def quantized_block(config: LlamaConfig, dtype: torch.dtype) -> nn.Module:
    """The same kind of block, W4A4 with random rotations and permutations."""
    recipe = Recipe(rotation=RotationConfig(selector="random"), lwc=LWCConfig(epochs=0))
    tensors = pack_block(quantize(plain_block(config, torch.float32), recipe))
    with torch.device("meta"):
        fresh = LlamaDecoderLayer(config, 0)
    return unpack_block(fresh, tensors, recipe, dtype).eval().requires_grad_(False)


class Bench:
    """Inputs of one block and the clock around it."""

    def __init__(self, config: LlamaConfig, tokens: int, dtype: torch.dtype, repeats: int) -> None:
        self.repeats = repeats
        self.hidden = torch.randn(1, tokens, config.hidden_size, dtype=dtype)
        rotary = LlamaRotaryEmbedding(config)
        self.position = rotary(self.hidden, torch.arange(tokens).unsqueeze(0))

    @torch.inference_mode()
    def block(self, block: nn.Module, tokens: int | None = None) -> float:
        """Seconds of one forward pass over the first ``tokens`` tokens."""
        hidden, (cos, sin) = self.hidden[:, :tokens], self.position
        position = (cos[:, :tokens], sin[:, :tokens])
        repeats = self.repeats if tokens is None else 20 * self.repeats
        return seconds(lambda: block(hidden, position_embeddings=position), repeats)

    def best(self, block: nn.Module, *, compiled: bool, tokens: int | None = None) -> float:
        """The faster of eager and compiled."""
        eager = self.block(block, tokens)
        if not compiled:
            return eager
        return min(eager, self.block(torch.compile(block, dynamic=False), tokens))


@torch.inference_mode()
def linears_alone(block: nn.Module, inputs: dict[int, Tensor], repeats: int) -> float:
    """Seconds of the seven linears with their transforms, without attention and norms."""

    def run() -> None:
        for site in SITES:
            first = block.get_submodule(site.linears[0])
            x = inputs[first.in_features]
            norm = block.get_submodule(site.producer)
            x = norm.site(x) if isinstance(norm, SiteNorm) else x
            for name in site.linears:
                block.get_submodule(name)(x)

    return seconds(run, repeats)


@torch.inference_mode()
def parts(block: nn.Module, inputs: dict[int, Tensor], repeats: int) -> dict[str, float]:
    """Seconds of transforms, of quantization, and of the rest of the seven linears."""
    sites = [module for module in block.modules() if isinstance(module, SiteTransform)]
    wide = {width: x.float() for width, x in inputs.items()}
    transform = seconds(lambda: [site.transformed(wide[site.width]) for site in sites], repeats)
    quantize = seconds(
        lambda: [site.quantizer.encoded(wide[site.width]) for site in sites], repeats
    )
    return {"transform": transform, "quantization": quantize}


@torch.inference_mode()
def plain_products(block: nn.Module, inputs: dict[int, Tensor], repeats: int) -> float:
    """Seconds of the seven matrix products of a block that is not quantized."""
    linears = [block.get_submodule(name) for name in LINEARS]
    return seconds(lambda: [linear(inputs[linear.in_features]) for linear in linears], repeats)


@torch.inference_mode()
def integer_products(block: nn.Module, tokens: int, repeats: int) -> float:
    """Seconds of the int8 matrix products of the seven linears, nothing else."""
    linears = [module for module in block.modules() if isinstance(module, PackedLinear)]
    inputs = {
        linear.in_features: torch.randint(0, 16, (tokens, linear.in_features), dtype=torch.uint8)
        for linear in linears
    }
    weights = [(linear.in_features, linear.prepare()[0].weight) for linear in linears]
    return seconds(lambda: [w.product(inputs[width]) for width, w in weights], repeats)


def resident_bytes(block: nn.Module) -> int:
    """Bytes of the linears as they lie in memory."""
    linears = [module for module in block.modules() if isinstance(module, PackedLinear)]
    return sum(linear.resident_bytes() for linear in linears)


def row(name: str, baseline: float, ours: float) -> None:
    """Print one line of the table."""
    print(f"{name:44s} {baseline * 1e3:10.1f} ms {ours * 1e3:10.1f} ms {baseline / ours:7.2f} x")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="also try torch.compile")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate,
        "num_attention_heads": options.heads,
        "max_position_embeddings": options.tokens,
    }
    config = LlamaConfig(**sizes, attn_implementation="sdpa")
    ours_config = LlamaConfig(**sizes, attn_implementation=ATTENTION_NAME)
    bench = Bench(config, options.tokens, torch.bfloat16, options.repeats)
    wide = Bench(config, options.tokens, torch.float32, options.repeats)
    widths = (options.hidden, options.intermediate)
    inputs = {width: torch.randn(options.tokens, width, dtype=torch.bfloat16) for width in widths}
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{'':44s} {'baseline':>13s} {'W4A4':>13s}   ratio")
    ours = quantized_block(ours_config, torch.bfloat16)
    configure_execution([ours], Execution("integer"))
    for dtype, timer in ((torch.bfloat16, bench), (torch.float32, wide)):
        plain = plain_block(config, dtype)
        name = str(dtype).removeprefix("torch.")
        typed = {width: x.to(dtype) for width, x in inputs.items()}
        for what, tokens in ((f"prefill {options.tokens}", None), ("decode 1", 1)):
            row(
                f"{what} tokens, block, against {name}",
                timer.best(plain, compiled=options.compiled, tokens=tokens),
                bench.best(ours, compiled=options.compiled, tokens=tokens),
            )
        row(
            f"prefill, linears alone, against {name}",
            linears_alone(plain, typed, options.repeats),
            linears_alone(ours, inputs, options.repeats),
        )
        row(
            f"roofline: matrix products alone, against {name}",
            plain_products(plain, typed, options.repeats),
            integer_products(ours, options.tokens, options.repeats),
        )
    for name, cost in parts(ours, inputs, options.repeats).items():
        print(f"{'prefill, of which ' + name:44s} {'':13s} {cost * 1e3:10.1f} ms")
    bf16 = sum(2 * linear.in_features * linear.out_features for linear in
               (ours.get_submodule(name) for name in LINEARS))  # fmt: skip
    print(f"weights in memory, fast:   {resident_bytes(ours) / bf16:.3f} x bfloat16")
    configure_execution([ours], Execution("integer", "packed"))
    print(f"weights in memory, packed: {resident_bytes(ours) / bf16:.3f} x bfloat16")
    packed = bench.best(ours, compiled=False)
    row(
        "prefill, packed, against bfloat16",
        bench.block(plain_block(config, torch.bfloat16)),
        packed,
    )


if __name__ == "__main__":
    main()
