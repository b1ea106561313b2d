"""The parts of the table: calibrations, prefill and decoding, each as work by name."""

from duquant.model.block_forward import TOKENS_AT_ONCE
from duquant.model.site_grams import GRAM_COLUMNS
from duquant.ops.packing import ROWS_AT_ONCE
from duquant.preflight.duration import (
    PASSES_OF_DISTILLATION,
    PASSES_OF_HEAD,
    PASSES_OF_ROUNDING,
)
from duquant.preflight.job import Job
from tests.benchmarks.predicted.card import Work
from tests.benchmarks.predicted.shapes import (
    ACTIVATION,
    BACKWARD,
    DEQUANTIZED,
    FAKED,
    HALF,
    ROTATED,
    WIDE,
    Block,
    searches,
    training_step,
)
from tests.ceilings import (
    COMPILED_FOR_GPUS,
    LAUNCHES_OF_A_BLOCK,
    LAUNCHES_OF_A_CHUNK,
    LAUNCHES_OF_A_COLUMN,
    LAUNCHES_OF_A_STEP,
    LAUNCHES_OF_THE_ORIGINAL,
    MORE_LAUNCHES,
    WAITS_OF_A_BLOCK,
    WAITS_OF_A_TURN,
)

Parts = dict[str, Work]
PROBES = 6
"""Passes of one sequence: the block's error, each site's alone, and that of Q, K and V."""
PIECE, GRAM_PIECE = 5, 3
"""Launches of a piece of a weight's rows that is unpacked, and of a Gram matrix's columns; small
models, in which launches are counted, have one piece of each."""


def calibration(job: Job) -> Parts:
    """All blocks, and distillation where the recipe has it."""
    block, recipe, count = Block.of(job), job.recipe, job.decoder.num_blocks
    parts = {name: work * count for name, work in _turn(job, block).items()}
    if recipe.distillation.epochs:
        steps = recipe.distillation.epochs * -(-job.streams.samples // job.distillation_batch)
        parts["distillation"] = _distillation_step(job, block) * steps
    return parts


def _turn(job: Job, block: Block) -> Parts:
    """A block from its weights' arrival to the streams behind it."""
    recipe, sizes = job.recipe, job.streams
    tokens, chunks = sizes.samples * sizes.tokens, _chunks(job)
    rounding = "gptq" if recipe.weight_rounding.needs_gram else "nearest"
    rotation = recipe.rotation
    parts = {
        "weights of blocks": Work(read=HALF * block.weights, pageable=2.5 * block.weights),
        "full-precision passes": block.original(tokens, chunks)
        + Work(launches=chunks * LAUNCHES_OF_A_CHUNK["nearest"]),
        "once a block": Work(launches=LAUNCHES_OF_A_BLOCK, waits=WAITS_OF_A_BLOCK[rounding])
        + block.quantized(PROBES * sizes.tokens, PROBES),
        "rotation searches": searches(block, rotation.max_steps, rotation.selector),
        "files": Work(written=sizes.boundary_bytes + 0.5 * block.weights),
    }
    passes = (PASSES_OF_ROUNDING if rounding == "gptq" else 1) * sizes.has_quantized
    of_chunk = LAUNCHES_OF_A_CHUNK["gptq"] - LAUNCHES_OF_A_CHUNK["nearest"]  # of both
    parts["quantized passes"] = block.quantized(tokens, chunks) * passes + Work(
        launches=chunks * of_chunk * bool(passes)
    )
    if recipe.has_lwc:
        steps = recipe.lwc.epochs * -(-sizes.samples // job.batch_size)
        learns_all = recipe.training.activation_clips or rotation.transform != "rotate_permute"
        step = training_step(block, job.batch_size * sizes.tokens, learns_all=learns_all)
        parts["training"] = sum(step.values(), Work()) * steps
    if rounding == "gptq":
        parts["GPTQ"] = _gptq(block, tokens, chunks)
    return parts


def with_streams_on_host(job: Job, *, pinned: bool) -> Parts:
    """A calibration whose streams lie in the host's memory: what passes a block is copied."""
    sizes, recipe = job.streams, job.recipe
    passes = 2 + 2 * sizes.has_quantized + 2 * recipe.lwc.epochs
    copied = float(passes * sizes.stream_bytes * job.decoder.num_blocks)
    work = Work(pinned=copied) if pinned else Work(pageable=copied)
    return {**calibration(job), "copies of streams": work}


def _chunks(job: Job) -> int:
    at_once = max(1, TOKENS_AT_ONCE // job.streams.tokens)
    return -(-job.streams.samples // at_once)


def _gptq(block: Block, tokens: int, chunks: int) -> Work:
    """Gram matrices in float32 (half of each), column after column, and Cholesky in float64."""
    squares = sum(width**2 for width in block.widths)
    pieces = sum(-(-width // GRAM_COLUMNS) for width in block.widths)
    columns = sum(block.widths)
    of_columns = 2.0 * max(block.widths) * block.weights  # at most: errors times feedback
    cubes = sum(width**3 for width in block.widths) / 3
    return Work(
        launches=chunks * pieces * GRAM_PIECE + columns * LAUNCHES_OF_A_COLUMN,
        waits=chunks * WAITS_OF_A_TURN["nothing_learns"]["finish"][1],
        full=tokens * squares + of_columns + cubes * 4,  # float64 counts as four times as much
        traffic=chunks * squares * 3 * WIDE + 60.0 * block.weights,
    )


def _distillation_step(job: Job, block: Block) -> Work:
    """A step of the whole model: forwards, once more, and backwards to the inputs alone."""
    count, tokens = job.decoder.num_blocks, job.distillation_batch * job.streams.tokens
    uses = 3  # of a weight, which is unpacked each time
    pieces = sum(-(-rows // ROWS_AT_ONCE) for rows in block.rows) - len(block.rows)
    between = (block.between(tokens) + block.faked(tokens)) * (2 + BACKWARD)
    of_block = (
        Work(half=(PASSES_OF_DISTILLATION - 1) * block.products(tokens))
        + block.trained_attention(tokens, forwards=2)
        + between
        + Work(traffic=uses * (DEQUANTIZED + HALF) * block.weights)
        + Work(launches=LAUNCHES_OF_A_STEP["distillation"] + uses * pieces * PIECE)
    )
    head = Work(half=2.0 * PASSES_OF_HEAD * job.embeddings * tokens)
    logits = Work(traffic=10.0 * WIDE * tokens * job.embeddings / block.hidden)
    return of_block * count + head + logits + Work(steps=1)


def prefill(block: Block, *, quantized: bool) -> Work:
    """One sequence through a block."""
    tokens = block.length
    if not quantized:
        return block.original(tokens, 1) + Work(launches=LAUNCHES_OF_THE_ORIGINAL)
    encoded = 2 * ROTATED + HALF + 1  # a byte of every channel
    inputs = block.linear_ends - sum(block.rows)
    laid_out = 3 * inputs  # a byte of every channel: read, written, read by the product
    attention = 2 * (ROTATED + FAKED) * block.hidden + FAKED * block.hidden
    others = block.between(tokens).traffic - HALF * tokens * inputs
    of_tokens = encoded * sum(block.widths) + laid_out + attention
    return Work(
        launches=LAUNCHES_OF_THE_ORIGINAL + MORE_LAUNCHES["nothing_learns"],
        integer=block.products(tokens),
        half=block.rotated(tokens),
        traffic=others + tokens * of_tokens + block.weights / 2,
    ) + block.fused_attention(tokens)


def decoding(job: Job, *, quantized: bool, how: str) -> Work:
    """One token behind a sequence, all layers and the head.

    Args:
        job: says which model.
        quantized: or the original.
        how: ``eager``, ``compiled`` or ``graph``: compiled, replayed as a CUDA graph.
    """
    block, count = Block.of(job), job.decoder.num_blocks
    eager = LAUNCHES_OF_THE_ORIGINAL + quantized * MORE_LAUNCHES["nothing_learns"]
    compiled = COMPILED_FOR_GPUS["W4A4" if quantized else "not quantized"]
    kernels = float(eager if how == "eager" else compiled)
    cache = 2 * HALF * block.length * block.hidden
    layer = Work(traffic=cache + ACTIVATION * block.inner)
    layer += Work(replayed=kernels) if how == "graph" else Work(launches=kernels)
    weights = Work(packed=block.weights / 2) if quantized else Work(traffic=HALF * block.weights)
    return (layer + weights) * count + Work(launches=5, traffic=HALF * job.embeddings)
