"""The pruned search against the plain loop over all rows: the same matrices, to the last bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.ops import greedy_search as module
from duquant.ops.greedy_search import greedy_search
from duquant.ops.kernels import screen
from duquant.ops.rotation import random_base
from duquant.ops.screen import Screen
from tests.ops.plain_search import calibration_rows, plain_search, rows_of_one_sign
from tests.outliers import seeds

needs_the_kernel = pytest.mark.skipif(
    not screen.is_available(),
    reason="needs an x86 processor with AVX2 and a C compiler",
)


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


@needs_the_kernel
@pytest.mark.parametrize("follow_row", [False, True])
@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize(("searches", "size"), [(1, 128), (5, 64)])
def test_so_it_does_by_the_kernel_and_without(
    searches: int, size: int, spread: float, follow_row: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = calibration_rows(3, searches, 700, size, spread)
    base = random_base(torch.Generator().manual_seed(3))(searches, size)
    expected = plain_search(rows, base, 64, follow_row=follow_row)
    assert torch.equal(greedy_search(rows, base, 64, follow_row=follow_row), expected)
    monkeypatch.setattr(screen, "_library", lambda: None)
    assert torch.equal(greedy_search(rows, base, 64, follow_row=follow_row), expected)


@pytest.mark.parametrize("follow_row", [False, True])
@pytest.mark.parametrize("size", [8, 64])
def test_rows_of_one_sign_and_rows_of_zeros(size: int, follow_row: bool) -> None:
    rows = rows_of_one_sign(size)
    base = random_base(torch.Generator().manual_seed(2))(4, size)
    found = greedy_search(rows, base, 12, follow_row=follow_row)
    assert torch.equal(found, plain_search(rows, base, 12, follow_row=follow_row))


@pytest.mark.parametrize("follow_row", [False, True])
def test_few_rows_take_part_where_there_are_outliers(
    follow_row: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = calibration_rows(1, 1, 4000, 32, 1.0)
    base = random_base(torch.Generator().manual_seed(1))(1, 32)
    taking_part = []
    original = Screen.extremes

    def counting(rows: Screen, matrices: Tensor, *, both: bool) -> tuple[Tensor, Tensor, Tensor]:
        taking_part.append(rows.count)
        return original(rows, matrices, both=both)

    monkeypatch.setattr(screen, "_library", lambda: None)
    monkeypatch.setattr(Screen, "extremes", counting)
    greedy_search(rows, base, 32, follow_row=follow_row)
    assert len(taking_part) > 32
    assert max(taking_part) < 400


@pytest.mark.parametrize("follow_row", [False, True])
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("exponent", [-126, -70, 60, 120])
def test_huge_and_tiny_searches_choose_the_same(exponent: int, size: int, follow_row: bool) -> None:
    """Squares of such numbers are infinite or zero in float32."""
    rows = calibration_rows(5, 2, 60, size, 0.5)
    base = random_base(torch.Generator().manual_seed(5))(2, size)
    shifted = rows.clone()
    shifted[1] *= 2.0**exponent
    found = greedy_search(shifted, base, 12, follow_row=follow_row)
    assert torch.equal(found, greedy_search(rows, base, 12, follow_row=follow_row))


def test_a_large_block_does_not_come_near_every_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """One column of its first product has an entry near 1; the others are told apart as well."""
    rows = torch.randn(1, 400, 512, generator=torch.Generator().manual_seed(6))
    base = random_base(torch.Generator().manual_seed(6))(1, 512)
    computed = []
    original = module._ActiveRows._possible

    def counting(active: module._ActiveRows, product: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = original(active, product)
        computed.append(len(found[0]))
        return found

    monkeypatch.setattr(module._ActiveRows, "_possible", counting)
    greedy_search(rows, base, 4, follow_row=False)
    assert max(computed) < 400
