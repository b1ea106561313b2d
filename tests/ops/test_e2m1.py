"""E2M1 beside a search for the nearest of eight fractions."""

import pytest
import torch

from duquant.ops.e2m1 import e2m1_codes, e2m1_values
from tests.slow_formats import E2M1, e2m1_code


def test_values_are_those_of_the_table_and_their_codes_come_back() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    values = e2m1_values(codes)
    assert values.tolist() == [float(v) for v in E2M1] + [-float(v) for v in E2M1]
    assert values[8].signbit()
    assert torch.equal(e2m1_codes(values), codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_codes_are_the_nearest_with_ties_to_even(dtype: torch.dtype) -> None:
    x = (torch.arange(-64 * 9, 64 * 9 + 1) / 64).to(dtype)  # every tie, its neighbours, beyond 6
    expected = [e2m1_code(value) for value in x.tolist()]
    assert e2m1_codes(x).tolist() == expected
    assert e2m1_values(e2m1_codes(x), dtype).dtype == dtype


def test_the_float_before_and_after_a_tie_go_to_different_codes() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    below = torch.nextafter(ties, torch.tensor(0.0))
    above = torch.nextafter(ties, torch.tensor(9.0))
    assert e2m1_codes(below).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert e2m1_codes(above).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert e2m1_codes(ties).tolist() == [0, 2, 2, 4, 4, 6, 6]


def test_signs_and_what_is_beyond_the_range() -> None:
    x = torch.tensor([0.0, -0.0, -0.2, torch.inf, -torch.inf, 1e38])
    assert e2m1_codes(x).tolist() == [0, 8, 8, 7, 15, 7]
