"""Screening in integers: the exact ends are where its bounds say; skipped without the kernel."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.ops.kernels import screen
from duquant.ops.rotation import random_orthogonal
from tests.outliers import seeds

SIZE = 64
pytestmark = pytest.mark.skipif(
    not screen.serves(torch.zeros(1, 1, SIZE)),
    reason="needs an x86 processor with AVX2 and a C compiler",
)


def exact_ends(rows: Tensor, ranking: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    ranked = rows.gather(1, ranking.unsqueeze(2).expand(-1, -1, rows.shape[2]))
    product = ranked.double() @ matrices.double()
    return product.amax(dim=2), product.amin(dim=2)


@given(seeds, st.integers(1, 3), st.integers(1, 300), st.integers(1, 3), st.sampled_from([0, 1, 4]))
def test_exact_ends_are_within_the_error(
    seed: int, searches: int, count: int, blocks: int, spread: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(searches, count, blocks * SIZE, generator=generator)
    rows *= torch.exp(spread * torch.randn(searches, count, 1, generator=generator))
    rows *= torch.exp(spread * torch.randn(blocks * SIZE, generator=generator))
    matrices = random_orthogonal(searches, blocks * SIZE, generator)
    ranking = torch.stack([torch.randperm(count, generator=generator) for _ in range(searches)])
    rounded = screen.RoundedRows(rows, ranking)
    rounded.take(count // 2)
    rounded.take(count)
    high, low, error = rounded.extremes(matrices)
    for found, exact in zip((high, low), exact_ends(rows, ranking, matrices), strict=True):
        assert ((found - exact).abs() <= error).all()
    # Half a step of 127 levels on either side, seen by a norm: far less than the row's own length.
    assert (error <= 0.1 * torch.linalg.vector_norm(rows, dim=2).gather(1, ranking)).all()


def test_whole_numbers_stay_as_they_are() -> None:
    rows = torch.arange(-SIZE, SIZE).float().view(1, 2, SIZE).repeat(1, 20, 1)
    rows[..., 0] = 127
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(0))
    rounded = screen.RoundedRows(rows, torch.arange(40).unsqueeze(0))
    rounded.take(40)
    high, low, _ = rounded.extremes(torch.eye(SIZE)[order].unsqueeze(0))
    # Scales are quotients in float32.
    torch.testing.assert_close(high, rows.amax(dim=2), rtol=1e-6, atol=0)
    torch.testing.assert_close(low, rows.amin(dim=2), rtol=1e-6, atol=0)


def test_rows_of_zeros_and_of_next_to_nothing() -> None:
    rows = torch.zeros(1, 3, SIZE)
    rows[0, 1, 5] = 1e-35
    rounded = screen.RoundedRows(rows, torch.arange(3).unsqueeze(0))
    rounded.take(3)
    high, low, error = rounded.extremes(torch.eye(SIZE).unsqueeze(0))
    assert (high - rows.amax(dim=2) <= error).all()
    assert not low.any()
    assert error[0, 0] == 0


def test_threads_do_not_change_a_bit() -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(2, 999, SIZE, generator=generator)
    matrices = random_orthogonal(2, SIZE, generator)
    ranking = torch.arange(999).repeat(2, 1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            rounded = screen.RoundedRows(rows, ranking)
            rounded.take(999)
            results.append(torch.stack(rounded.extremes(matrices)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_what_it_does_not_serve() -> None:
    assert not screen.serves(torch.zeros(1, 3, SIZE).double())
    assert not screen.serves(torch.zeros(1, 0, SIZE))
    assert not screen.serves(torch.zeros(1, 3, 24))
