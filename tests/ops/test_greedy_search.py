"""The pruned search against the plain loop over all rows: the same matrices, to the last bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.ops.greedy_search import exchange_channels, greedy_search
from duquant.ops.rotation import random_base
from tests.outliers import seeds


def plain_search(rows: Tensor, base: Tensor, max_steps: int, *, follow_row: bool) -> Tensor:
    """Every row takes part in every step."""

    def peak() -> Tensor:
        flat = rows.flatten(1)
        return flat.amax(1) - flat.amin(1) if follow_row else flat.abs().amax(1)

    size = rows.shape[-1]
    product = torch.eye(size).expand_as(base)
    best, best_peak = product, peak()
    for _ in range(max_steps):
        position = rows.abs().flatten(1).argmax(dim=1)
        channel = position // size % size if follow_row else position % size
        step = exchange_channels(base, channel)
        rows, product = rows @ step, product @ step
        better = peak() < best_peak
        best_peak = torch.where(better, peak(), best_peak)
        best = torch.where(better.view(-1, 1, 1), product, best)
    return best


def calibration_rows(seed: int, searches: int, count: int, size: int, spread: float) -> Tensor:
    """Rows of very different norms (``spread`` 0: of equal ones), some of them twice."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(searches, count, size, generator=generator)
    rows *= torch.exp(spread * torch.randn(searches, count, 1, generator=generator))
    rows[:, : count // 2, 0] *= 1 + 10 * spread
    rows[:, -1] = rows[:, 0]
    return rows


@given(
    seeds,
    st.integers(1, 3),
    st.integers(2, 40),
    st.sampled_from([2, 8, 16]),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.booleans(),
)
def test_the_pruned_search_chooses_what_the_plain_one_does(
    seed: int, searches: int, count: int, size: int, spread: float, follow_row: bool
) -> None:
    rows = calibration_rows(seed, searches, count, size, spread)
    base = random_base(torch.Generator().manual_seed(seed))(searches, size)
    pruned = greedy_search(rows, base, 12, follow_row=follow_row)
    torch.testing.assert_close(
        pruned, plain_search(rows, base, 12, follow_row=follow_row), rtol=0, atol=0
    )


@pytest.mark.parametrize("follow_row", [False, True])
def test_few_rows_take_part_where_there_are_outliers(
    follow_row: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = calibration_rows(1, 1, 4000, 32, 1.0)
    base = random_base(torch.Generator().manual_seed(1))(1, 32)
    multiplied = []
    from duquant.ops import greedy_search as module

    original = module._ActiveRows.multiply

    def counting(active: module._ActiveRows, step: Tensor) -> None:
        multiplied.append(active._current.shape[1])
        original(active, step)

    monkeypatch.setattr(module._ActiveRows, "multiply", counting)
    greedy_search(rows, base, 32, follow_row=follow_row)
    assert max(multiplied) < 400
