"""Chunk by chunk or as a whole: the same numbers."""

import pytest
import torch
from torch import Tensor

from duquant.ops.chunks import in_chunks


@pytest.mark.parametrize("at_once", [1, 6, 20, 60, 1000])
@pytest.mark.parametrize("dim", [0, 1])
def test_chunks_make_up_the_whole(at_once: int, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duquant.ops.chunks.FLOATS_AT_ONCE", at_once)
    x, seen = torch.arange(60.0).view(5, 4, 3), []

    def work(chunk: Tensor) -> Tensor:
        seen.append(chunk.numel())
        return chunk.square()

    assert torch.equal(in_chunks(work, x, dim), x.square())
    smallest = x.numel() // x.shape[dim]
    assert max(seen) <= max(at_once, smallest)
    assert sum(seen) == x.numel()


def test_what_is_recorded_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duquant.ops.chunks.FLOATS_AT_ONCE", 1)
    x, calls = torch.ones(3, 2, requires_grad=True), []

    def work(chunk: Tensor) -> Tensor:
        calls.append(chunk)
        return chunk * 2

    in_chunks(work, x, dim=0).sum().backward()
    assert len(calls) == 1
    with torch.no_grad():
        in_chunks(work, x, dim=0)
    assert len(calls) == 1 + 3


def test_nothing_is_no_chunk() -> None:
    assert in_chunks(torch.neg, torch.zeros(0, 4), dim=0).shape == (0, 4)
