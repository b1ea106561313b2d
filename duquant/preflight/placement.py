"""Whether the activations between blocks stay on the GPU that computes, or in the host's memory.

On the GPU no step and no block waits for copies. The numbers are the same.
"""

from dataclasses import replace

from duquant.preflight.job import Job
from duquant.preflight.memory import device_phase


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
