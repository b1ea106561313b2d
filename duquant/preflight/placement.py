"""What a GPU that computes has room for: the blocks, and the activations between them.

Blocks must fit. Activations stay there if there is room for both, else in the host's memory: on the
GPU no step and no block waits for copies. The numbers are the same.
"""

import re
from dataclasses import replace

import torch

from duquant.model.decoder import Decoder
from duquant.model.structure import ATTENTION
from duquant.ops.repeatable_attention import repeats_flash_on
from duquant.preflight.job import Job
from duquant.preflight.memory import device_phase


def holds_scores(decoder: Decoder, tokens: int, device: torch.device) -> bool:
    """Whether training on a GPU holds the matrices of attention: not if it is FlashAttention.

    Args:
        decoder: the model.
        tokens: of a sample; if a window of attention is shorter, there is a mask.
        device: of the blocks.
    """
    window = getattr(decoder.config, "sliding_window", None)
    if window is not None and window < tokens:
        return True
    head_dim = int(decoder.meta_block().get_submodule(ATTENTION).head_dim)  # type: ignore[arg-type]
    return not repeats_flash_on(device, decoder.dtype, head_dim)


def with_streams_placed(job: Job, free: int | None) -> Job:
    """The job with its streams on the GPU, if they fit beside the phase that needs most memory.

    Args:
        job: a job whose streams lie elsewhere.
        free: bytes that are free on the GPU; ``None`` where there is no memory but the host's.
    """
    placed = replace(job, streams_on_gpu=True)
    if free is None or device_phase(placed).num_bytes > free:
        return job
    return placed


def require_device_room(
    job: Job, free: int | None, device: torch.device, *, in_python: bool = False
) -> None:
    """Check that a GPU can hold what is computed there.

    Args:
        job: with its streams placed.
        free: as for :func:`with_streams_placed`.
        device: which GPU.
        in_python: whether its options are arguments and fields of a recipe, not a command's.

    Raises:
        ValueError: with what is needed, what is free, and an option that helps.
    """
    phase = device_phase(job)
    if free is None or phase.num_bytes <= free:
        return
    remedy = re.sub(r"--(model|data)\.", "", phase.remedy) if in_python else phase.remedy
    raise ValueError(
        f"the run needs about {size_text(phase.num_bytes)} of the memory of {device} "
        f"({phase.name}), but {size_text(free)} are free there: try {remedy}"
    )


def size_text(num_bytes: float) -> str:
    """Bytes in words.

    >>> size_text(2.5e9), size_text(1e6)
    ('2.5 GB', '1.0 MB')
    """
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
