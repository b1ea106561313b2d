"""A queue of a device for copies, which run beside what it computes.

A GPU does what it is asked for in the order of a queue (PyTorch calls it a stream), and the host
goes on meanwhile. A copy delays neither the host nor what is computed if three things hold:

* it is in a queue of its own;
* the host's end of it is *pinned*, memory that the operating system leaves where it is;
* the host does not wait for it.

Then nothing orders copies and computation but *marks* (PyTorch: events): a queue goes on, or the
host does, when another queue has reached a mark. Who copies says what the copy waits for, and lets
whoever needs it wait for the mark behind it. :mod:`duquant.ops.uploads` and
:mod:`duquant.ops.downloads` do so; nothing else uses this class.

The tests run copies on an emulated device, as late as marks allow and in random orders that they
allow. That a GPU keeps the order of its marks, and how much time is saved, only a GPU can show;
none has run this.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Mark:
    """A place in a queue.

    Args:
        event: PyTorch's word for it.
    """

    def __init__(self, event: Any) -> None:
        self.event = event

    def wait(self) -> None:
        """Let the host wait until the queue has reached it."""
        self.event.synchronize()


class CopyStream:
    """A device's queue for copies, beside the one in which this thread computes now.

    Args:
        device: a device that has queues, see :meth:`of`.
    """

    def __init__(self, device: torch.device) -> None:
        self._module: Any = torch.get_device_module(device)
        self._copying = self._module.Stream(device=device)
        self._computing = self._module.current_stream(device)

    @classmethod
    def of(cls, device: torch.device) -> "CopyStream | None":
        """A queue of ``device``; ``None`` where there is none: on the CPU, on Apple's GPUs."""
        is_host = device.type in ("cpu", "meta")
        has_queues = not is_host and hasattr(torch.get_device_module(device), "Stream")
        return cls(device) if has_queues else None

    def computed(self) -> Mark:
        """A mark behind all that the device has been asked to compute."""
        return Mark(self._computing.record_event())

    def compute_after(self, mark: Mark) -> None:
        """Let what is computed from now on wait for ``mark``; the host does not wait."""
        self._computing.wait_event(mark.event)

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], *, after: Mark) -> Mark:
        """Ask for copies; the host goes on at once.

        Args:
            pairs: target and source, one of them pinned and the other on the device, both
                contiguous. Whoever asks keeps them, and leaves both as they are, until the mark.
            after: what the copies wait for.

        Returns:
            A mark behind them.
        """
        with self._module.stream(self._copying):
            self._copying.wait_event(after.event)
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
            return Mark(self._copying.record_event())


def pinned_memory(like: Tensor) -> Tensor:
    """Memory of the host for values like these, which a device reads and writes by itself."""
    return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)


def pinned_bytes(num_bytes: int) -> int:
    """What PyTorch pins for a tensor: the next power of two, kept until the process ends."""
    return 1 << (num_bytes - 1).bit_length() if num_bytes else 0
