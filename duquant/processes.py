"""The processes that share one calibration, and what they have to tell each other.

Every process holds a share of the calibration samples and runs the whole algorithm on it; what the
algorithm needs of *all* samples is reduced, so that every process gets the same numbers, bit by
bit, and decides the same:

    max|x| per channel       the largest over processes
    calibration mean         the mean over processes, once, before block 0
    Gram matrices            the sum over processes, where a search or the rounding reads them
    LWC loss, gradients      the mean over processes (gradients: DistributedDataParallel)

Shares interleave: process ``r`` of ``n`` holds samples r, r + n, r + 2n, … Its k-th batch of
``batch_size / n`` samples and those of the others then are the k-th batch of a single process.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Processes:
    """This process among those that share a calibration; alone by default.

    Args:
        rank: number of this process.
        count: number of processes; above 1, torch.distributed's default group joins them.
        device: where tensors must lie for the group's backend to exchange them.
        local_count: how many of them run on this machine and share its memory.
    """

    rank: int = 0
    count: int = 1
    device: torch.device | str = "cpu"
    local_count: int = 1

    def share(self, samples: Tensor) -> Tensor:
        """This process's samples of ``(samples, ...)``."""
        return samples[self.rank :: self.count]

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all processes, of the same shape and dtype; ``value`` is left alone."""
        if self.count == 1:
            return value
        total = value.detach().to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.to(value.device)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over all processes, each of which stands for as many samples."""
        return self.sum(value) / self.count if self.count > 1 else value

    def max(self, value: Tensor) -> Tensor:
        """Largest entries over all processes; not a number where one of them has none."""
        return torch.stack(self.gather(value)).amax(dim=0) if self.count > 1 else value

    def require_same(self, values: Iterable[Tensor | str], complaint: str) -> None:
        """Check that every process holds the same bytes; exchanges a checksum of them.

        Raises:
            ValueError: on every process, with ``complaint`` behind the processes that differ.
        """
        if self.count == 1:
            return
        checksum = 0
        for value in values:
            checksum = zlib.crc32(_bytes(value), checksum)
        checksums = [int(other) for other in self.gather(torch.tensor(checksum, device="cpu"))]
        differing = [rank for rank, other in enumerate(checksums) if other != checksums[0]]
        if differing:
            ranks = ", ".join(map(str, differing))
            raise ValueError(f"process {ranks} of {self.count} differs from process 0: {complaint}")

    def gather(self, value: Tensor) -> list[Tensor]:
        """Every process's value, of the same shape and dtype, in the order of their ranks."""
        if self.count == 1:
            return [value]
        own = value.detach().to(self.device).contiguous()
        gathered = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(gathered, own)
        return [other.to(value.device) for other in gathered]


ALONE = Processes()


def _bytes(value: Tensor | str) -> Any:
    if isinstance(value, str):
        return value.encode()
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
