"""Integers as a format are the same numbers, bit for bit, as the functions below them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duquant.formats.integer import Integer
from duquant.formats.number_format import Clip, split_rows
from duquant.formats.unquantized import Unquantized
from duquant.nn.packed_linear import PackedLinear
from duquant.ops.affine import affine_grid, dequantize, largest_zero, quantize
from duquant.ops.fake_quantize import fake_quantize_rows
from duquant.ops.packing import pack
from tests.number_rows import ordinary_rows
from tests.outliers import outlier_activation, random_weight, seeds

ratios = st.floats(0.3, 1.0)


@given(seeds, st.integers(2, 15), st.booleans(), ratios, ratios)
def test_grid_codes_and_values(
    seed: int, bits: int, symmetric: bool, high: float, low: float
) -> None:
    x = ordinary_rows(24, seed)
    form = Integer(bits, symmetric)
    grid = affine_grid(x, bits, symmetric=symmetric, clip_high=high, clip_low=low)
    own = form.grid(x, Clip(high, low))
    assert all(torch.equal(*pair) for pair in zip(own, grid, strict=True))
    q = quantize(x, grid, bits)
    assert torch.equal(form.codes(x, own).float(), q)
    assert torch.equal(form.values(form.codes(x, own), own), dequantize(q, grid))


@given(seeds, st.integers(2, 8), st.booleans(), st.booleans(), st.booleans())
def test_fake_quantization_and_its_gradients(
    seed: int, bits: int, symmetric: bool, moves_zero_point: bool, learns: bool
) -> None:
    results = []
    upstream = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed))
    for through_format in (False, True):
        x = outlier_activation(6, 40, seed).requires_grad_()
        high, low = (torch.full((6, 1), ratio).requires_grad_(learns) for ratio in (0.7, 0.9))
        if through_format:
            y = Integer(bits, symmetric).fake_quantize(x, Clip(high, low, moves_zero_point))
        else:
            y = fake_quantize_rows(
                x,
                bits,
                symmetric=symmetric,
                clip_high=high,
                clip_low=low,
                zero_point_gradient=moves_zero_point,
            )
        wanted = (x, high, low) if learns else (x,)
        results.append((y.detach(), *torch.autograd.grad(y, wanted, upstream)))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 11])
@pytest.mark.parametrize("group_size", [None, 16])
def test_stored_is_what_a_packed_linear_holds(bits: int, group_size: int | None) -> None:
    weight = random_weight(6, 48, 0)
    form = Integer(bits, group_size=group_size)
    rows = split_rows(weight, group_size)
    grid = affine_grid(rows, bits, clip_high=0.9, clip_low=0.8)
    own = form.grid(rows, Clip(0.9, 0.8))
    stored = form.store(form.codes(rows, own).view(weight.shape), own)
    assert torch.equal(stored["packed"], pack(quantize(rows, grid, bits).view(6, -1), bits))
    assert torch.equal(stored["scale"], grid.scale.view(6, -1))
    assert torch.equal(stored["zero"], grid.zero.view(6, -1).to(torch.int16))
    linear = PackedLinear(
        stored, None, form, activations=Unquantized(), in_features=48, dtype=torch.float32
    )
    codes, restored = form.restore(stored, 48)
    values = form.values(split_rows(codes, group_size), restored).view(weight.shape)
    assert torch.equal(values, linear.dequantized())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "bits is 1; it must be 2 to 16 "),
        ({"bits": 16}, "bits is 16; it must be 2 to 16 .16 means unquantized"),
        ({"bits": 17}, "bits is 17"),
        ({"group_size": 0}, "group_size is 0; it must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Integer(**options)


@pytest.mark.parametrize("offset", [-0.9, -0.4, 0.0, 0.4, 0.9])
@pytest.mark.parametrize("bits", [9, 13, 14, 15])
def test_zero_points_of_wide_integers_reach_every_integer(bits: int, offset: float) -> None:
    """Also where nearly all of a row is negative: its zero point is the last integer, 2¹⁵ − 1."""
    x = (torch.rand(6, 64, generator=torch.Generator().manual_seed(bits)) * 2 - 1 + offset) * 30
    x[0] = -x[0].abs()
    x[1, :] = torch.linspace(-1, 0, 64)
    form = Integer(bits)
    grid = form.grid(x)
    codes = form.codes(x, grid)
    values = form.values(codes, grid)
    # Half a step, once for the value and once for the zero point, and what float32 rounds away.
    assert ((values - x).abs() <= grid.scale * 1.01 + 1e-6).all()
    assert torch.equal(form.fake_quantize(x), values)
    stored = form.store(codes, grid)
    for name, rule in form.stored_rules.items():
        assert stored[name].dtype in rule.dtypes
        assert rule.holds(stored[name])
    again, (scale, zero) = form.restore(stored, 64)
    assert torch.equal(form.values(again, (scale, zero)), values)


def test_up_to_13_bits_the_largest_zero_point_is_that_of_the_authors() -> None:
    assert {largest_zero(bits) for bits in range(2, 14)} == {10_000}
    assert [largest_zero(bits) for bits in (14, 15)] == [2**14 - 1, 2**15 - 1]
