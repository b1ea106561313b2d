"""Batches of a turn's samples, in a fixed order."""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, DistributedSampler

from duquant.data.streams import BlockSamples
from duquant.model.batch import BlockBatch
from duquant.ops.uploads import uploaded

Read = TypeVar("Read")


class UploadedBatches:
    """Batches on a device: the next is on its way while one is computed with.

    Args:
        samples: where they lie does not matter.
        batch_size: samples of a batch; the last may be smaller.
        device: where they shall lie.
    """

    def __init__(self, samples: BlockSamples, batch_size: int, device: torch.device) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.device = device

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[BlockBatch]:
        """The batches, in the order of their samples."""
        starts, end = range(0, len(self.samples), self.batch_size), len(self.samples)
        read = (self.samples.batch(range(s, min(s + self.batch_size, end))) for s in starts)
        return (BlockBatch(*parts) for parts in uploaded(read, self.device))


def batch_loader(
    samples: BlockSamples, batch_size: int, device: torch.device
) -> DataLoader[BlockBatch] | UploadedBatches:
    """Batches of ``batch_size`` samples, one after the other, on ``device``."""
    if device.type != "cpu":
        return UploadedBatches(samples, batch_size, device)
    order = in_order(samples)
    return DataLoader(samples, batch_size=batch_size, sampler=order, collate_fn=_as_read)


def in_order(share: Any) -> "DistributedSampler[Any]":
    """All of a process's share, one after the other; Lightning would share it out once more."""
    return DistributedSampler(share, num_replicas=1, rank=0, shuffle=False)


def _as_read(batch: Read) -> Read:
    """A batch is read at once, so there is nothing to stack."""
    return batch
