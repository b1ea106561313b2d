"""The written-out gradient beside autograd's, through the formulas of ``ops.affine``."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.ops.affine import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    AffineGrid,
    dequantize,
    fake_quantize,
    quantize,
    round_straight_through,
)
from duquant.ops.fake_quantize import fake_quantize_rows
from tests.outliers import outlier_activation, seeds

ratios = st.floats(0.2, 0.999)

WIDTHS = st.sampled_from([*range(2, 9), 13, 14, 15])


def inputs(
    seed: int, high_ratio: float, low_ratio: float, *, exponent: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    x = outlier_activation(5, 24, seed, dtype=torch.float64) * 10.0**exponent
    x[3] = x[3].abs() + 1  # a row of one sign
    high = torch.full((5, 1), high_ratio, dtype=torch.float64)
    low = torch.full((5, 1), low_ratio, dtype=torch.float64)
    return tuple(tensor.requires_grad_() for tensor in (x, high, low))  # type: ignore[return-value]


@given(seeds, WIDTHS, st.booleans(), ratios, ratios, st.sampled_from([-7, 0, 5]))
def test_gradients_are_autograds(
    seed: int, bits: int, symmetric: bool, high_ratio: float, low_ratio: float, exponent: int
) -> None:
    """Also where the scale meets its limits, at 1e-5 and at 1e4, and passes nothing on."""
    x, high, low = inputs(seed, high_ratio, low_ratio, exponent=exponent)
    upstream = torch.randn(
        x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    gradients = []
    for function in (fake_quantize, fake_quantize_rows):
        y = function(x, bits, symmetric=symmetric, clip_high=high, clip_low=low)
        gradients.append((y.detach(), *torch.autograd.grad(y, (x, high, low), upstream)))
    (expected_y, *expected), (y, *written) = gradients
    # float64; the reference adds the rounding error of t back, so its last digit may move.
    torch.testing.assert_close(y, expected_y, rtol=1e-12, atol=1e-12)
    for one, other in zip(written, expected, strict=True):
        # Sums of 24 terms in float64, in another order; terms are as large as the largest entry.
        scale = float(x.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10 * (1 + scale))


@given(seeds, st.integers(2, 8), ratios, ratios, st.sampled_from([-7, 0, 5]))
def test_the_zero_point_passes_its_gradient_on_where_asked(
    seed: int, bits: int, high_ratio: float, low_ratio: float, exponent: int
) -> None:
    x, high, low = inputs(seed, high_ratio, low_ratio, exponent=exponent)
    x = x.detach()
    upstream = torch.randn(
        x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    y = fake_quantize_rows(x, bits, clip_high=high, clip_low=low, zero_point_gradient=True)
    written = torch.autograd.grad(y, (high, low), upstream)
    top, bottom = high * x.amax(-1, keepdim=True), low * x.amin(-1, keepdim=True)
    scale = ((top - bottom) / (2**bits - 1)).clamp(SMALLEST_SCALE, LARGEST_SCALE)
    zero = round_straight_through((-bottom / scale).clamp(-LARGEST_SCALE, LARGEST_SCALE))
    grid = AffineGrid(scale, zero)
    reference = dequantize(quantize(x, grid, bits), grid)
    torch.testing.assert_close(y, reference, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(reference, (high, low), upstream)
    for one, other in zip(written, expected, strict=True):
        # As above; zero points up to 1e4 multiply what cancels in the reference.
        atol = 1e-8 * (1 + float(x.abs().max()))
        torch.testing.assert_close(one, other, rtol=1e-8, atol=atol)


def test_a_symmetric_zero_point_has_no_gradient() -> None:
    x, *_ = inputs(0, 1, 1)
    gradients = []
    for zero_point_gradient in (False, True):
        _, *clips = inputs(0, 0.7, 0.6)
        high, low = clips
        y = fake_quantize_rows(
            x.detach(),
            4,
            symmetric=True,
            clip_high=high,
            clip_low=low,
            zero_point_gradient=zero_point_gradient,
        )
        gradients.append(torch.autograd.grad(y.square().sum(), clips))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@given(seeds, WIDTHS, st.booleans(), ratios)
def test_values_are_the_references(seed: int, bits: int, symmetric: bool, ratio: float) -> None:
    x = outlier_activation(5, 24, seed)
    options = {"symmetric": symmetric, "clip_high": ratio, "clip_low": ratio}
    assert torch.equal(fake_quantize_rows(x, bits, **options), fake_quantize(x, bits, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_half_precision_is_computed_in_float32(
    dtype: torch.dtype, bits: int, symmetric: bool
) -> None:
    """Widened, quantized and rounded; of gradients the two ends of a row are rounded twice."""
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(5, 24, generator=generator).mul(9).to(dtype).requires_grad_()
    clips = [torch.full((5, 1), ratio, requires_grad=True) for ratio in (0.8, 0.7)]
    options = {"symmetric": symmetric, "clip_high": clips[0], "clip_low": clips[1]}
    upstream = torch.randn(5, 24, generator=generator).to(dtype)

    def by(quantize: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        y = quantize(x)
        assert y.dtype == dtype
        return y, *torch.autograd.grad(y, (x, *clips), upstream)

    wide = by(lambda half: fake_quantize_rows(half.float(), bits, **options).to(dtype))
    found = by(lambda half: fake_quantize_rows(half, bits, **options))
    for name, mine, expected in zip(("values", "x", "high", "low"), found, wide, strict=True):
        assert mine.dtype == expected.dtype, name
        if name == "x":
            largest = float(upstream.abs().max())  # of two terms, whose sum may be smaller
            error = 2 * torch.finfo(dtype).eps
            torch.testing.assert_close(mine, expected, rtol=error, atol=error * largest)
            ends = (mine != expected).sum(-1)
            assert ends.max() <= 2
        else:
            assert torch.equal(mine, expected), name
    with torch.no_grad():
        compiled = torch.compile(fake_quantize_rows, backend="eager")(x, bits, **options)
    assert torch.equal(compiled, found[0])


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_only_what_is_asked_for_gets_a_gradient(needed: tuple[bool, bool, bool]) -> None:
    given_inputs = [
        tensor.detach().requires_grad_(need)
        for tensor, need in zip(inputs(0, 0.9, 0.8), needed, strict=True)
    ]
    x, high, low = given_inputs
    fake_quantize_rows(x, 4, clip_high=high, clip_low=low).sum().backward()
    assert tuple(tensor.grad is not None for tensor in given_inputs) == needed


def test_plain_numbers_as_ratios() -> None:
    x, _, _ = inputs(0, 1, 1)
    (written,) = torch.autograd.grad(fake_quantize_rows(x, 4, clip_high=0.9, clip_low=0.9).sum(), x)
    (expected,) = torch.autograd.grad(fake_quantize(x, 4, clip_high=0.9, clip_low=0.9).sum(), x)
    torch.testing.assert_close(written, expected)


def test_symmetric_ties_share_their_gradient() -> None:
    """Both ends equally large: autograd's maximum gives each one half."""
    x = torch.tensor([[-2.0, 0.3, 2.0]], dtype=torch.float64)
    ratios = [torch.full((1, 1), 0.7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    gradients = []
    for function in (fake_quantize, fake_quantize_rows):
        y = function(x, 3, symmetric=True, clip_high=ratios[0], clip_low=ratios[1])
        gradients.append(torch.autograd.grad(y.square().sum(), ratios))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_sixteen_bits_leave_the_tensor_alone() -> None:
    x = torch.ones(1, 2)
    assert fake_quantize_rows(x, 16) is x
