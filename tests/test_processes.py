"""Shares of samples, and what a process that is alone does not exchange.

What two exchange is tested with two, in ``tests/callbacks/test_data_parallel.py``.
"""

import pytest
import torch

from duquant.processes import ALONE, Processes


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_batches_of_all_processes_are_the_batch_of_one(count: int) -> None:
    samples, batch_size = torch.arange(16), 4
    shares = [Processes(rank, count).share(samples) for rank in range(count)]
    assert all(len(share) == 16 // count for share in shares)
    for step, batch in enumerate(samples.split(batch_size)):
        parts = [share.split(batch_size // count)[step] for share in shares]
        assert torch.equal(torch.cat(parts).sort().values, batch)


def test_alone_every_reduction_is_the_value_itself() -> None:
    value = torch.tensor([1.0, float("nan")])
    for reduce in (ALONE.sum, ALONE.mean, ALONE.max):
        assert reduce(value) is value
    assert ALONE.gather(value)[0] is value
    ALONE.require_same([value, "text"], "it cannot differ from itself")
