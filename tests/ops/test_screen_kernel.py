"""Screening in integers: no extreme is missed and few others are found; skipped without it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.ops.kernels import screen
from duquant.ops.rotation import random_orthogonal
from duquant.ops.screen import Screen
from tests.outliers import seeds

SIZE = 64
pytestmark = pytest.mark.skipif(
    not screen.is_available(),
    reason="needs an x86 processor with AVX2 and a C compiler",
)
Places = set[tuple[int, int, int]]


def found_in(rows: Tensor, ranking: Tensor, matrices: Tensor, *, both: bool) -> Places:
    rounded = Screen(rows, ranking)
    for count in (max(1, rows.shape[1] // 2), rows.shape[1]):
        rounded.take(count)
        rounded.extremes(matrices, both=both)
    places = torch.stack(rounded.extremes(matrices, both=both), dim=1).tolist()
    found = {(search, place, channel) for search, place, channel in places}
    assert len(found) == len(places)
    return found


def ranked_product(rows: Tensor, ranking: Tensor, matrices: Tensor) -> Tensor:
    ranked = rows.gather(1, ranking.unsqueeze(2).expand(-1, -1, rows.shape[2]))
    return ranked.double() @ matrices.double()


@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 300),
    st.integers(1, 2),
    st.sampled_from([0, 1, 4]),
    st.booleans(),
)
def test_no_extreme_is_missed(
    seed: int, searches: int, count: int, blocks: int, spread: int, both: bool
) -> None:
    size = blocks * SIZE
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(searches, count, size, generator=generator)
    rows *= torch.exp(spread * torch.randn(searches, count, 1, generator=generator))
    rows *= torch.exp(spread * torch.randn(size, generator=generator))
    matrices = random_orthogonal(searches, size, generator)
    ranking = torch.stack([torch.randperm(count, generator=generator) for _ in range(searches)])
    found = found_in(rows, ranking, matrices, both=both)
    exact = ranked_product(rows, ranking, matrices)
    # Half a step of 127 levels on either side, seen by a norm: far less than the row's own length.
    near = 0.1 * torch.linalg.vector_norm(rows, dim=2).gather(1, ranking).double().unsqueeze(2)
    for end in (exact, -exact) if both else (exact.abs(),):
        for search, position in enumerate(end.flatten(1).argmax(dim=1).tolist()):
            assert (search, position // size, position % size) in found
    ends = (exact, -exact) if both else (exact.abs(),)
    largest = [(end - near).amax(dim=(1, 2), keepdim=True) for end in ends]
    allowed = [end + near >= most for end, most in zip(ends, largest, strict=True)]
    assert all(any(where[place] for where in allowed) for place in found)


def test_equal_entries_are_all_found_however_many() -> None:
    rows = torch.ones(1, 100, SIZE)
    ranking = torch.arange(100).unsqueeze(0)
    found = found_in(rows, ranking, torch.eye(SIZE).unsqueeze(0), both=False)
    assert 100 * SIZE > screen.PLACES
    assert len(found) == 100 * SIZE


def test_over_zeros_one_entry_stands_for_all() -> None:
    rows = torch.zeros(2, 3, SIZE)
    rows[1, :, 7] = torch.tensor([1.0, 2.0, 1e-35])
    ranking = torch.tensor([[0, 1, 2], [1, 0, 2]])
    found = found_in(rows, ranking, torch.eye(SIZE).repeat(2, 1, 1), both=False)
    assert found == {(0, 0, 0), (1, 0, 7)}


def test_searches_may_lie_side_by_side() -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(50, 3 * SIZE, generator=generator)
    rows = x.view(50, 3, SIZE).transpose(0, 1)
    assert not rows.is_contiguous()
    matrices = random_orthogonal(3, SIZE, generator)
    ranking = torch.arange(50).repeat(3, 1)
    found = found_in(rows, ranking, matrices, both=True)
    assert found == found_in(rows.contiguous(), ranking, matrices, both=True)


def test_threads_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(2, 999, SIZE, generator=generator)
    matrices = random_orthogonal(2, SIZE, generator)
    ranking = torch.arange(999).repeat(2, 1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(found_in(rows, ranking, matrices, both=True))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]
