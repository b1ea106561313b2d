"""E4M3 scales beside a search for the nearest of 127 fractions."""

from fractions import Fraction

import torch

from duquant.ops.e4m3 import e4m3_bytes, e4m3_scales, e4m3_values
from tests.slow_formats import E4M3, nearest_code


def test_values_of_all_positive_bytes() -> None:
    stored = torch.arange(127, dtype=torch.uint8)
    assert e4m3_values(stored).tolist() == [float(number) for number in E4M3]
    assert torch.equal(e4m3_bytes(e4m3_values(stored)), stored)


def test_scales_are_the_nearest_with_ties_to_even() -> None:
    numbers = torch.tensor([float(number) for number in E4M3])
    middles = (numbers[1:] + numbers[:-1]) / 2
    around = [torch.nextafter(middles, torch.tensor(to)) for to in (0.0, 999.0)]
    x = torch.cat([numbers, middles, *around])
    x = x[x > 2.0**-10]  # below, the nearest number is zero
    expected = [float(E4M3[nearest_code(Fraction(value), E4M3)]) for value in x.tolist()]
    assert e4m3_scales(x).tolist() == expected


def test_no_scale_is_zero_or_infinite() -> None:
    x = torch.tensor([0.0, 1e-30, 2.0**-10, 449.0, 1e38, torch.inf])
    assert e4m3_scales(x).tolist() == [2.0**-9] * 3 + [448.0] * 3
    assert e4m3_scales(torch.tensor(torch.nan)).isnan()
