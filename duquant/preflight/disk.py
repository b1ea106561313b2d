"""Disk: what a run directory holds at most."""

from pathlib import Path

from duquant.export.model_directory import COMPANIONS
from duquant.export.packed_size import packed_bytes
from duquant.preflight.job import Job

PICTURE_BYTES = 300_000
"""A block's picture, three times: as a file, in TensorBoard, in the report."""
SPARE_BYTES = 2_000_000
"""Logs, records, names of tensors."""


def disk_bytes(job: Job, clip_factors: int) -> int:
    """Bytes a run writes at most: streams, the model, two checkpoints, logs.

    Args:
        job: what is to be done.
        clip_factors: bytes of all learnable clip factors.
    """
    packed = sum(packed_bytes(block, job.recipe) for block in job.blocks)
    checkpoints = 2 * 3 * clip_factors  # the old and the new one, factors and AdamW's two moments
    model = packed + job.outside * job.item + sum(file.stat().st_size for file in _copied(job))
    pictures = PICTURE_BYTES * job.decoder.num_blocks
    return job.processes * _stream_bytes(job) + model + checkpoints + pictures + SPARE_BYTES


def _copied(job: Job) -> list[Path]:
    """Tokenizer and other small files that the model directory takes over."""
    directory = job.decoder.directory
    return [file for pattern in COMPANIONS for file in directory.glob(pattern)]


def _stream_bytes(job: Job) -> int:
    """Of one process: two boundaries; where they lie on disk, the one being filled as well."""
    sizes = job.streams
    if job.streams_in_memory:
        return 2 * sizes.boundary_bytes
    return 3 * sizes.boundary_bytes + (sizes.stream_bytes if sizes.has_augmented else 0)
