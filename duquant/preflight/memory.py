"""Memory: which phase of a run needs how much, counted from shapes.

A run never holds more than one block, but what it does to that block differs. With ``P`` weights in
its linears, ``L`` in the largest, ``T`` tokens at once, ``h`` and ``m`` channels outside and inside
of the MLP, and numbers of ``i`` bytes (4 in everything that is quantized):

| phase | beside the streams |
|---|---|
| embedding | the embeddings, as they are read and as they are used |
| full precision | ``P·i`` and the activations of ``T`` tokens |
| search | ``P·4``, ``P·i`` too if the model's dtype is another one, temporary copies of ``L`` |
| rounding (GPTQ) | weights as in the search, ``m²·16``: a Gram matrix, in float64, its factor |
| training | ``P·12`` (weights, quantized weights, which are clamped), the batch's activations |
| distillation | all packed blocks, ``D·16`` for ``D`` learned numbers, the batch's activations |
| measuring | ``P·i``, the packed weights, ``T`` tokens; hidden states of all variants |
| logits | the head, and the logits of a few tokens |

While a block is entered, the packed one before it is being written; while something is trained, a
copy of what is learned, for the checkpoint (``callbacks/boundary_files.py``): both in the host's
memory. The counts of temporary tensors are those of the code; a benchmark compares them with the
resident memory that the operating system reports (``tests/benchmarks/preflight.py``). On a GPU the
phases lie there, and training has the matrices of attention too where that is not FlashAttention
(:mod:`duquant.nn.attention`); the streams stay there as well if there is room
(:mod:`duquant.preflight.placement`), else the host keeps them, and they pass through buffers of
both (:mod:`duquant.preflight.copy_buffers`). The host reads one block, or the embeddings
(:func:`host_phase`).
"""

from dataclasses import dataclass, replace
from math import prod

from duquant.evaluation.perplexity import LOGITS_AT_ONCE
from duquant.export.float_tensors import float_shapes
from duquant.export.packed_size import packed_bytes
from duquant.formats.number_format import num_groups
from duquant.model.structure import SITES
from duquant.preflight.copy_buffers import (
    chunk_bytes,
    device_buffers,
    pinned_buffers,
    written_block,
)
from duquant.preflight.job import Job
from duquant.transforms.table import transform_class

WIDE = 4
"""Bytes of a number in whatever is quantized."""
SCORES = 4
"""Matrices of attention that are held at once: scores, probabilities, and the gradients of both."""
LARGEST_COPIED_CHECKPOINT = 256 << 20
"""A checkpoint of more bytes is written before the run goes on, so it need not be copied."""
LIBRARIES = 120 << 20
"""What is imported and buffered once the work begins."""


@dataclass(frozen=True)
class Phase:
    """A phase of a run.

    Attributes:
        name: what happens.
        num_bytes: memory it takes.
        remedy: the option that makes it smaller.
    """

    name: str
    num_bytes: int
    remedy: str


def memory_phases(job: Job) -> list[Phase]:
    """Memory of every phase beside what the process has already."""
    dtype = "--model.dtype bfloat16" if job.item > 2 else "a machine with more memory"
    streams = "--data.stream_memory_gb 0"
    held = _streams(job)
    block, checkpoint = (0, 0) if job.on_gpu else (written_block(job), _checkpoint(job))
    stream_remedy = streams if job.streams_in_memory and held > job.block_weights else dtype
    is_long = _hidden_states(job) > _measuring(job)
    chunk = "a smaller --data.validation_chunk" if is_long else dtype
    phases = [
        Phase("embedding", _table(job) + chunk_bytes(job) + held, dtype),
        Phase("full precision", held + block + _full_precision(job), stream_remedy),
        Phase("search", held + block + _search(job), stream_remedy),
    ]
    if job.windows:
        hidden = _hidden_states(job)
        phases.append(Phase("measuring", hidden + _measuring(job), chunk))
        phases.append(Phase("logits", hidden + _table(job) + _logits(job), chunk))
    if job.recipe.has_lwc:
        batch = "a smaller --model.lwc.batch_size"
        remedy = batch if job.batch_size > 1 else stream_remedy
        phases.append(Phase("training", held + checkpoint + _training(job), remedy))
    if job.recipe.weight_rounding.needs_gram:
        phases.append(Phase("rounding", held + _rounding(job), stream_remedy))
    if job.recipe.distillation.epochs:
        remedy = "--model.distillation.epochs 0"
        if not job.gradient_checkpointing:
            remedy = "--model.gradient_checkpointing true"
        elif job.distillation_batch > 1:
            remedy = "a smaller --model.distillation.batch_size"
        phases.append(Phase("distillation", held + checkpoint + _distillation(job), remedy))
    always = LIBRARIES + distilled_bytes(job)
    return [Phase(p.name, always + p.num_bytes, p.remedy) for p in phases]


def largest_phase(job: Job) -> Phase:
    """The phase that decides how much memory a run needs."""
    return max(memory_phases(job), key=lambda phase: phase.num_bytes)


def device_phase(job: Job) -> Phase:
    """The same of a GPU's memory, where streams that the host holds pass through in chunks."""
    return largest_phase(replace(job, streams_in_memory=job.streams_on_gpu))


def host_phase(job: Job) -> Phase:
    """What the host needs: all of it, or, where a GPU computes, what is kept and read."""
    if not job.on_gpu:
        return largest_phase(job)
    read = max(job.block_weights * job.item, _table(job)) + 2 * chunk_bytes(job)
    read += _checkpoint(job)
    held = 0 if job.streams_on_gpu else _streams(replace(job, on_gpu=False))
    count = LIBRARIES + distilled_bytes(job) + held + pinned_buffers(job) + read
    return Phase("streams", count, "--data.stream_memory_gb 0")


def _streams(job: Job) -> int:
    """Streams in memory, or what of them is on its way, or the chunks of them that are mapped."""
    if job.streams_in_memory:
        return job.streams.bytes_at_once
    return device_buffers(job) if job.on_gpu else 2 * chunk_bytes(job)


def _checkpoint(job: Job) -> int:
    """What is learned, and the two moments of one turn: the copy that is being written."""
    turns = job.decoder.num_blocks + 2 if job.recipe.has_lwc else 0
    numbers = _learned_transforms(job) + _clip_factors(job)
    learned = turns * numbers * WIDE + 3 * distilled_bytes(job)
    return learned if learned <= LARGEST_COPIED_CHECKPOINT else 0


def _clip_factors(job: Job) -> int:
    """Of the weights of a block: two for every group."""
    size = job.recipe.formats.weights.group_size
    return sum(2 * rows * num_groups(width, size) for rows, width in job.linears.values())


def _table(job: Job) -> int:
    """Embeddings or head: read in the dtype of the file, two bytes, and converted."""
    return job.embeddings * (job.item if job.item == 2 else job.item + 2)


def _mlp_width(job: Job) -> int:
    return max(job.linears["mlp.down_proj"])


def _full_precision(job: Job) -> int:
    width = max(3 * _mlp_width(job), 5 * job.streams.hidden) + 3 * job.streams.hidden
    return job.block_weights * job.item + job.tokens_at_once * width * job.item


def _quantized_forward(job: Job, tokens: int) -> int:
    return tokens * (4 * _mlp_width(job) + 3 * job.streams.hidden) * WIDE


def _held_weights(job: Job) -> int:
    return job.block_weights * (WIDE if job.item == WIDE else WIDE + job.item)


def _search(job: Job) -> int:
    copies = 3 * job.largest_linear * WIDE
    tokens = job.tokens_at_once if job.recipe.needs_quantized_stream else job.streams.tokens
    if job.recipe.needs_grams:
        copies += 2 * _mlp_width(job) ** 2 * WIDE  # Gram matrices
    return _held_weights(job) + max(copies, _quantized_forward(job, tokens))


def _rounding(job: Job) -> int:
    """Three sites' Gram matrices are summed up; then one is factored, and weights are rounded."""
    hidden, wide = job.streams.hidden, _mlp_width(job)
    grams = sum(job.linears[site.linears[0]][1] ** 2 for site in SITES[1:])
    down = 3 * wide**2 + 3 * hidden * wide
    gate_and_up = 2 * hidden**2 + 5 * 2 * hidden * wide
    forward = _quantized_forward(job, job.tokens_at_once) + 3 * wide**2 * WIDE  # and sums them up
    return _held_weights(job) + grams * WIDE + max(max(down, gate_and_up) * WIDE, forward)


def _training(job: Job) -> int:
    tokens = job.batch_size * job.streams.tokens
    activations = tokens * (10 * _mlp_width(job) + 24 * job.streams.hidden) * WIDE
    weights = 3 * job.block_weights + 4 * job.largest_linear
    learned = _learned_transforms(job)
    if learned:  # weights are transformed in every step: before, between, and their gradients
        weights += 4 * job.block_weights
        activations += 2 * tokens * (2 * _mlp_width(job) + 6 * job.streams.hidden) * WIDE
    activations += SCORES * job.batch_size * job.attention_scores * WIDE * job.holds_scores
    # Transforms of all blocks are held; the current one's gradients and two moments come to that.
    return (weights + learned * (job.decoder.num_blocks + 3)) * WIDE + activations


def _distillation(job: Job) -> int:
    """Every block packed; hidden states between blocks, the activations of one block or of all."""
    tokens = job.distillation_batch * job.streams.tokens
    blocks = job.decoder.num_blocks
    packed = sum(packed_bytes(block, job.recipe) for block in job.blocks)
    before = _learned_transforms(job) * blocks * WIDE if job.recipe.has_lwc else 0
    between = blocks * tokens * job.streams.hidden * WIDE
    activations = tokens * (14 * _mlp_width(job) + 36 * job.streams.hidden) * WIDE
    activations += SCORES * job.distillation_batch * job.attention_scores * WIDE * job.holds_scores
    if not job.gradient_checkpointing:
        activations *= blocks
    within = max(activations + 4 * job.largest_linear * WIDE, 2 * _logits(job))
    tables = _table(job) + job.embeddings * job.item
    return packed + before + 3 * distilled_bytes(job) + between + within + tables


def distilled_bytes(job: Job) -> int:
    """Bytes of what the whole model will learn, which are held from the start."""
    if not job.recipe.distillation.epochs:
        return 0
    shapes = (float_shapes(block, job.recipe) for block in job.blocks)
    return sum(prod(shape) for of_block in shapes for shape in of_block.values()) * WIDE


def _learned_transforms(job: Job) -> int:
    """Numbers that the transforms of a block learn."""
    kind, options = transform_class(job.recipe.rotation), job.recipe.rotation
    widths = (job.linears[site.linears[0]][1] for site in SITES)
    shapes = [shape for w in widths for shape in kind.learned_shapes(w, options).values()]
    return sum(prod(shape) for shape in shapes)


def _hidden_states(job: Job) -> int:
    windows = min(job.validation_chunk, max(job.windows, default=0))
    return job.num_variants * windows * job.streams.tokens * job.streams.hidden * job.item


def _measuring(job: Job) -> int:
    packed = job.block_weights * job.recipe.formats.weights.bits // 8
    return packed + max(
        job.block_weights * job.item + _quantized_forward(job, job.tokens_at_once),
        job.block_weights * job.item + 3 * job.largest_linear * WIDE,
    )


def _logits(job: Job) -> int:
    tokens = job.embeddings // job.streams.hidden * job.tokens_at_once
    return 3 * min(LOGITS_AT_ONCE, tokens) * WIDE
