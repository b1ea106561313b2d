"""What every check of :mod:`tests.benchmarks.gpu_check` uses: a device, its clock, a small text."""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import duquant
from duquant.config import LWCConfig, RotationConfig

Figures = dict[str, Any]
Work = Callable[[], object]
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
TEXT = " ".join(
    f"the {first} of a {second} is {index} and returns {first}{index % 7}"
    for index, (first, second) in enumerate(zip(dir(str) * 60, dir(list) * 80, strict=False))
)


@dataclass(frozen=True)
class Bench:
    """Where checks run.

    Attributes:
        device: what is looked at.
        small: whether sizes are those of a rehearsal.
        folder: for what checks write; a check may find there what an earlier one has left.
        command: what begins the command line in a process of its own.
    """

    device: torch.device
    small: bool
    folder: Path
    command: tuple[str, ...] = (sys.executable, "cli.py")

    @property
    def is_cuda(self) -> bool:
        """Whether work is queued, so that a clock has to wait for it."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until everything that was queued is done."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Work) -> float:
        """Of one call."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def median_ms(self, work: Work, repeats: int = 7) -> float:
        """Median milliseconds of single calls, after one to warm up."""
        self.seconds(work)
        times = [self.seconds(work) for _ in range(2 if self.small else repeats)]
        return round(statistics.median(times) * 1e3, 4)

    def mean_ms(self, work: Work, repeats: int = 30) -> float:
        """Mean milliseconds of calls that are queued one behind the other."""
        count = 2 if self.small else repeats
        self.seconds(work)
        return round(self.seconds(lambda: [work() for _ in range(count)]) / count * 1e3, 4)

    def profile(self, work: Work, top: int = 12) -> Figures:
        """Kernels, waits of the host and the largest times of one call; empty without CUDA."""
        if not self.is_cuda:
            return {}
        from torch.profiler import ProfilerActivity, profile

        self.seconds(work)
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
            self.seconds(work)
        events = seen.key_averages()
        ran = [event for event in events if event.self_device_time_total > 0]
        ran.sort(key=lambda event: -event.self_device_time_total)
        return {
            "launches": sum(event.count for event in events if event.key in LAUNCHES),
            "waits": {e.key: e.count for e in events if "Synchronize" in e.key},
            "copies": sum(event.count for event in events if event.key == "cudaMemcpyAsync"),
            "top": [[e.key[:70], e.count, e.self_device_time_total / 1e3] for e in ran[:top]],
        }

    def peak_gb(self, work: Work) -> Figures:
        """Most memory that was taken on the GPU meanwhile."""
        if not self.is_cuda:
            work()
            return {}
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return {"peak_gb": round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)}

    def quantized(
        self, name: str, device: torch.device | str, *, epochs: int, dtype: str = "float32"
    ) -> Path:
        """The embedded model calibrated on a device, once per name."""
        path = self.folder / name
        if not (path / "config.json").is_file():
            steps = 4 if self.small else 32
            recipe = duquant.Recipe(
                rotation=RotationConfig(block_size=64, max_steps=steps),
                lwc=LWCConfig(epochs=epochs, batch_size=2, learning_rate=0.5),
            )
            size = {"num_samples": 2, "sequence_length": 16} if self.small else {}
            size = size or {"num_samples": 8, "sequence_length": 64}
            duquant.quantize(
                "quickstart", TEXT, recipe, output_dir=path, device=device, dtype=dtype, **size
            )
        return path


def generator(seed: int) -> torch.Generator:
    """Randomness that is the same on every machine."""
    return torch.Generator(device="cpu").manual_seed(seed)


def not_applicable(why: str) -> Figures:
    """Figures of a check for which the device lacks something; the last line names the check."""
    return {"not_applicable": why}


Check = Callable[[Bench], Figures]
CHECKS: dict[str, tuple[Check, float]] = {}
"""Every check by name, and the seconds it may take on a GPU."""


def check(limit: float) -> Callable[[Check], Check]:
    """Make a function a check that is ended after ``limit`` seconds."""

    def add(work: Check) -> Check:
        CHECKS[work.__name__] = (work, limit)
        return work

    return add
