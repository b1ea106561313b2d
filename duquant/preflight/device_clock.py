"""Seconds of work on a device that computes behind the host, as a GPU does."""

import time
from collections.abc import Callable

import torch


class DeviceClock:
    """Times work on one device, which it waits for before and after.

    Args:
        device: where the work is done; it need not be the current GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def once(self, work: Callable[[], object]) -> float:
        """Seconds of this work."""
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def settled(self, work: Callable[[], object]) -> float:
        """Seconds of the second time, when everything has been set up."""
        work()
        return self.once(work)

    def _wait(self) -> None:
        torch.get_device_module(self.device).synchronize(self.device)
