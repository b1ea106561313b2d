"""Batches of a turn's samples, in a fixed order."""

from typing import Any, TypeVar

from torch.utils.data import DataLoader, DistributedSampler

from duquant.data.streams import BlockSamples
from duquant.model.batch import BlockBatch

Read = TypeVar("Read")


def batch_loader(samples: BlockSamples, batch_size: int) -> DataLoader[BlockBatch]:
    """Batches of ``batch_size`` samples, one after the other; the last may be smaller."""
    order = in_order(samples)
    return DataLoader(samples, batch_size=batch_size, sampler=order, collate_fn=_as_read)


def in_order(share: Any) -> "DistributedSampler[Any]":
    """All of a process's share, one after the other; Lightning would share it out once more."""
    return DistributedSampler(share, num_replicas=1, rank=0, shuffle=False)


def _as_read(batch: Read) -> Read:
    """A batch is read at once, so there is nothing to stack."""
    return batch
