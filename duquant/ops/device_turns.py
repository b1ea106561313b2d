"""How long runs take on an accelerator, by its own clock.

As :mod:`duquant.ops.turns` does on processors, runs take turns, and of each the median and the best
time count. An accelerator does later what it is asked for, so it is given *events* before and
behind every run, which hold the times at which it came there. The host waits once, at the end.

Before every run a large buffer is filled, several times. That throws weights out of the device's
cache, as the other layers of a model do, and gives the host the time to ask for the run before it
begins. So the device's work is measured and not how long asking for it takes, as where a CUDA graph
asks. Once takes the fastest cards some 60 µs, as long as the host asks for a few kernels.

**This has not run on a GPU yet**, but on the tests' emulated device, by a clock of theirs.
"""

import importlib.metadata
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from duquant.ops.turns import Timing

WARM_UPS, TURNS = 3, 10
FILLED_BYTES, FILLS = 1 << 28, 4
"""More than any cache holds; so often that it takes longer than asking for a run."""

logger = logging.getLogger(__name__)
Run = Callable[[], object]


def accelerator(device: torch.device) -> dict[str, str]:
    """Plain values that times on an accelerator depend on: its name, and versions of software."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    module: Any = torch.get_device_module(device)
    return {
        "device": str(module.get_device_name(device)),
        "torch": torch.__version__,
        "runtime": str(torch.version.cuda or torch.version.hip),
        "triton": triton,
    }


def is_recorded(device: torch.device) -> bool:
    """Whether what is asked of an accelerator now is traced, or becomes part of a CUDA graph."""
    if torch.compiler.is_compiling():
        return True
    module = torch.get_device_module(device)
    return bool(getattr(module, "is_current_stream_capturing", lambda: False)())


def device_timings(
    candidates: Mapping[str, Callable[[int], Run]], sizes: Sequence[int], device: torch.device
) -> dict[str, list[Timing]]:
    """Time candidates at every size, after some runs to warm up.

    Args:
        candidates: by name what makes a run of a size.
        sizes: likewise.
        device: where they run.

    Returns:
        For each candidate a time of every size; none of a candidate that failed.
    """
    module: Any = torch.get_device_module(device)
    stream = module.current_stream(device)
    buffer = torch.empty(FILLED_BYTES, dtype=torch.uint8, device=device)

    def mark() -> Any:
        event = module.Event(enable_timing=True)
        stream.record_event(event)
        return event

    runs = {name: made for name, make in candidates.items() if (made := _warm(name, make, sizes))}
    marks: dict[str, list[list[tuple[Any, Any]]]] = {name: [[] for _ in sizes] for name in runs}
    for index in range(len(sizes)):
        for _ in range(TURNS):
            for name, each in runs.items():
                for _ in range(FILLS):
                    buffer.zero_()
                before = mark()
                each[index]()
                marks[name][index].append((before, mark()))
    module.synchronize(device)
    return {name: [_timing(pairs) for pairs in marks.get(name, [])] for name in candidates}


def _warm(name: str, make: Callable[[int], Run], sizes: Sequence[int]) -> list[Run]:
    """Runs of a candidate, which have run; none if it fails, for want of memory or otherwise."""
    try:
        runs = [make(size) for size in sizes]
        for run in runs * WARM_UPS:
            run()
    except Exception as error:  # whatever a device, its libraries or a compiler raise
        logger.info("%s is not measured: %s: %s", name, type(error).__name__, error)
        return []
    return runs


def _timing(pairs: Sequence[tuple[Any, Any]]) -> Timing:
    seconds = [before.elapsed_time(after) / 1e3 for before, after in pairs]
    return Timing(statistics.median(seconds), min(seconds))
