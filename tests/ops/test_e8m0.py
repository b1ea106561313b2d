"""Powers of two as bytes, at every exponent a float32 has."""

import math

import torch

from duquant.ops.e8m0 import NAN, e8m0_at_most, e8m0_values

BYTES = torch.arange(256, dtype=torch.uint8)


def test_values_of_all_bytes() -> None:
    values = e8m0_values(BYTES)
    assert values[:-1].tolist() == [2.0 ** (byte - 127) for byte in range(255)]
    assert values[-1].isnan()


def test_all_bytes_come_back() -> None:
    assert torch.equal(e8m0_at_most(e8m0_values(BYTES)), BYTES)


def test_the_largest_power_up_to_a_number() -> None:
    """Around every power of two, where a rounded logarithm goes astray."""
    powers = e8m0_values(BYTES[1:-1])
    before = torch.nextafter(powers, torch.tensor(0.0))
    after = torch.nextafter(powers, torch.tensor(torch.inf))
    for exponent in (0, 2):
        for x in (powers, before, after):
            expected = [math.frexp(value)[1] - 1 - exponent + 127 for value in x.tolist()]
            stored = e8m0_at_most(x, exponent=exponent).tolist()
            assert stored == [max(byte, 0) for byte in expected]


def test_numbers_without_a_logarithm() -> None:
    x = torch.tensor([0.0, 2.0**-149, torch.inf, torch.nan])
    assert e8m0_at_most(x, exponent=2).tolist() == [0, 0, 253, NAN]
    assert e8m0_at_most(x.half(), exponent=2).tolist() == [0, 0, 253, NAN]


def test_shapes_and_strides_do_not_matter() -> None:
    x = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)).transpose(0, 2)
    assert torch.equal(e8m0_at_most(x), e8m0_at_most(x.contiguous()))
    assert e8m0_values(e8m0_at_most(x)).shape == x.shape
    assert e8m0_at_most(torch.empty(0, 1)).shape == (0, 1)
