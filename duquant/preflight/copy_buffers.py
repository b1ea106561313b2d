"""Memory of what is on its way between the host and a GPU.

Streams that the host keeps, or the disk, pass through buffers of both (:mod:`duquant.ops.uploads`,
:mod:`duquant.ops.downloads`); those on the GPU, and finished blocks, go to files through buffers of
the host. A process keeps what it has pinned.
"""

from duquant.data.stream_files import BYTES_AT_ONCE
from duquant.export.packed_size import packed_bytes
from duquant.ops.copy_stream import pinned_bytes
from duquant.preflight.job import Job

SLOTS = 2
"""Buffers that take turns."""


def device_buffers(job: Job) -> int:
    """Bytes on the GPU beside its streams, if they lie elsewhere.

    Of chunks two buffers, the one that is given out, and outputs that are being copied; or of
    batches two buffers and the one that is given out.
    """
    return max((SLOTS + 2) * chunk_bytes(job), (SLOTS + 1) * _num_parts(job) * _batch_bytes(job))


def pinned_buffers(job: Job) -> int:
    """Bytes that the host pins, where a GPU computes."""
    block = pinned_bytes(written_block(job))
    if job.streams_on_gpu:
        return block + SLOTS * pinned_bytes(min(BYTES_AT_ONCE, job.streams.stream_bytes))
    chunks = 2 * SLOTS * pinned_bytes(chunk_bytes(job))  # to the GPU and back
    return block + chunks + SLOTS * _num_parts(job) * pinned_bytes(_batch_bytes(job))


def written_block(job: Job) -> int:
    """Bytes of the largest block's file."""
    return max(packed_bytes(block, job.recipe) for block in job.blocks)


def chunk_bytes(job: Job) -> int:
    """Hidden states that go through a block together."""
    return job.tokens_at_once * job.streams.hidden * job.item


def _num_parts(job: Job) -> int:
    """Of a batch: inputs, targets, and the augmented loss's."""
    return 2 + job.streams.has_augmented


def _batch_bytes(job: Job) -> int:
    """Hidden states of the larger batch, of a block or of the whole model; 0 if nothing learns."""
    of_block = job.batch_size if job.recipe.has_lwc else 0
    of_model = job.distillation_batch if job.recipe.distillation.epochs else 0
    return max(of_block, of_model) * job.streams.sample_bytes
