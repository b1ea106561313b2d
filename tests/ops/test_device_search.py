"""The search of accelerators, on the CPU: the same matrices as the plain loop, to the last bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.ops import device_search
from duquant.ops.device_search import EXACT_ROWS, MORE, search_on_device
from duquant.ops.rotation import random_base, random_orthogonal
from tests.ops.plain_search import calibration_rows, plain_search, rows_of_one_sign
from tests.outliers import seeds


def bases(seed: int, searches: int, size: int) -> Tensor:
    return random_base(torch.Generator().manual_seed(seed))(searches, size)


@given(
    seeds,
    st.integers(1, 3),
    st.integers(2, 2 * EXACT_ROWS),
    st.sampled_from([2, 8, 16]),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.booleans(),
)
def test_it_chooses_what_the_plain_search_does(
    seed: int, searches: int, count: int, size: int, spread: float, follow_row: bool
) -> None:
    rows = calibration_rows(seed, searches, count, size, spread)
    base = bases(seed, searches, size)
    found = search_on_device(rows, base, 12, follow_row=follow_row)
    assert torch.equal(found, plain_search(rows, base, 12, follow_row=follow_row))


@pytest.mark.parametrize("follow_row", [False, True])
@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize(("searches", "size"), [(1, 128), (5, 64)])
def test_so_it_does_over_many_rows_and_steps(
    searches: int, size: int, spread: float, follow_row: bool
) -> None:
    rows = calibration_rows(3, searches, 700, size, spread)
    base = bases(3, searches, size)
    expected = plain_search(rows, base, 70, follow_row=follow_row)
    assert torch.equal(search_on_device(rows, base, 70, follow_row=follow_row), expected)


@pytest.mark.parametrize("follow_row", [False, True])
@pytest.mark.parametrize("size", [8, 64])
def test_rows_of_one_sign_and_rows_of_zeros(size: int, follow_row: bool) -> None:
    rows = rows_of_one_sign(size)
    base = bases(2, 4, size)
    found = search_on_device(rows, base, 12, follow_row=follow_row)
    assert torch.equal(found, plain_search(rows, base, 12, follow_row=follow_row))


@pytest.mark.parametrize("exponent", [-126, 120])
def test_huge_and_tiny_searches_choose_the_same(exponent: int) -> None:
    rows, base = calibration_rows(5, 2, 60, 16, 0.5), bases(5, 2, 16)
    shifted = rows.clone()
    shifted[1] *= 2.0**exponent
    found = search_on_device(shifted, base, 12, follow_row=False)
    assert torch.equal(found, search_on_device(rows, base, 12, follow_row=False))


@pytest.mark.parametrize("follow_row", [False, True])
@pytest.mark.parametrize("size", [8, 128])
def test_no_row_that_is_left_out_passes_the_bound(size: int, follow_row: bool) -> None:
    """Hundreds of rows that differ by what float32 products round away."""
    generator = torch.Generator().manual_seed(9)
    rows = torch.randn(2, 1, size, generator=generator).repeat(1, 500, 1)
    rows += 1e-7 * torch.randn(rows.shape, generator=generator)
    product = random_orthogonal(2, size, generator)
    search = device_search._Search(rows, product, EXACT_ROWS, follow_row=follow_row)
    numbers, bounds = search._candidates(product)
    assert numbers.shape == (2, (1 + follow_row) * EXACT_ROWS)
    is_chosen = torch.zeros(2, 500).scatter_(1, numbers, 1).bool().unsqueeze(1)
    exact = search._ends(rows.double() @ product.double())
    left_out = exact.masked_fill(is_chosen, -torch.inf)
    assert (left_out.amax(dim=2) <= bounds).all()
    assert (bounds - exact.amax(dim=2) < 1e-3).all()


Asked = list[tuple[int, bool]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Of every question whether the rows were enough: how many they were, and the answer."""
    answers: Asked = []
    original = device_search._Search.is_sure

    def noting(search: device_search._Search, state: device_search._State) -> bool:
        answers.append((search.exact_rows, original(search, state)))
        return answers[-1][1]

    monkeypatch.setattr(device_search._Search, "is_sure", noting)
    return answers


def test_rows_that_differ_are_asked_about_once(asked: Asked) -> None:
    rows, base = calibration_rows(1, 3, 400, 32, 0.0), bases(1, 3, 32)
    search_on_device(rows, base, device_search.STEPS_AT_ONCE, follow_row=False)
    assert asked == [(EXACT_ROWS, True)]


@pytest.mark.parametrize("seed", range(4))
def test_of_equal_rows_the_first_counts(seed: int, asked: Asked) -> None:
    """They are more than a step computes exactly, from the start."""
    rows = calibration_rows(seed, 1, 400, 16, 0.0)
    generator = torch.Generator().manual_seed(seed)
    rows[0, torch.randperm(400, generator=generator)[: 3 * EXACT_ROWS]] = 3 * rows[0, 9]
    base = bases(seed, 1, 16)
    found = search_on_device(rows, base, 12, follow_row=True)
    assert torch.equal(found, plain_search(rows, base, 12, follow_row=True))
    assert asked == [(EXACT_ROWS, False), (MORE * EXACT_ROWS, True)]


@pytest.mark.parametrize(("follow_row", "spike"), [(False, 20), (True, 22)])
def test_it_goes_back_when_the_rows_were_too_few(
    follow_row: bool, spike: float, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows hold the ends until they are flat; behind come many that float32 cannot tell."""
    monkeypatch.setattr(device_search, "STEPS_AT_ONCE", 3)
    rows = calibration_rows(4, 1, 400, 16, 0.0)
    rows[0, 100:300] = 3 * rows[0, 100]
    rows += 1e-7 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(8))
    rows[0, 5, 2], rows[0, 6, 3] = spike, -spike
    base = bases(4, 1, 16)
    found = search_on_device(rows, base, 40, follow_row=follow_row)
    assert torch.equal(found, plain_search(rows, base, 40, follow_row=follow_row))
    answers = [answer for _, answer in asked]
    assert answers[0]
    assert answers.count(False) == 2
    assert len(answers) == -(-40 // 3) + 2
    assert {count for count, _ in asked} == {EXACT_ROWS, MORE * EXACT_ROWS, MORE**2 * EXACT_ROWS}
