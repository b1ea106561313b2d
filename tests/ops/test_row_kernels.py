"""The C kernels of fake quantization beside PyTorch's operations; skipped where there are none."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.ops.affine import affine_grid, dequantize, quantize
from duquant.ops.fake_quantize import fake_quantize_rows
from duquant.ops.kernels import rows
from duquant.ops.quantized_tokens import encode_tokens
from tests.outliers import outlier_activation, seeds

pytestmark = pytest.mark.skipif(
    not rows.is_available(), reason="needs an x86 processor with AVX2 and a C compiler"
)
sizes = st.integers(1, 150)
ratios = st.floats(0.2, 1.0)


def gradients(x: Tensor, bits: int, ratio: float, *, symmetric: bool) -> list[Tensor]:
    """Values, and gradients of input and both clip factors."""
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(x.shape, generator=generator)
    inputs = [x, torch.full((*x.shape[:-1], 1), ratio), torch.full((*x.shape[:-1], 1), ratio)]
    x, high, low = (tensor.detach().requires_grad_() for tensor in inputs)
    y = fake_quantize_rows(
        x, bits, symmetric=symmetric, clip_high=high, clip_low=low, zero_point_gradient=True
    )
    return [y.detach(), *torch.autograd.grad(y, (x, high, low), upstream)]


@given(seeds, st.integers(1, 9), sizes, st.integers(2, 8), ratios)
def test_values_are_equal_to_the_last_bit(
    seed: int, tokens: int, width: int, bits: int, ratio: float
) -> None:
    x = outlier_activation(tokens, width, seed)
    grid = affine_grid(x, bits, clip_high=ratio, clip_low=ratio)
    high, low = rows.row_extremes(x)
    assert torch.equal(high, x.amax(-1, keepdim=True))
    assert torch.equal(low, x.amin(-1, keepdim=True))
    expected = dequantize(quantize(x, grid, bits), grid)
    assert torch.equal(rows.quantize_rows(x, grid, bits), expected)
    assert torch.equal(x.gather(-1, rows.find_in_rows(x, high)), high)


@given(seeds, st.integers(1, 9), sizes, st.integers(2, 8), st.booleans(), ratios)
def test_gradients_are_those_of_the_other_path(
    seed: int, tokens: int, width: int, bits: int, symmetric: bool, ratio: float
) -> None:
    x = outlier_activation(tokens, width, seed)
    here = gradients(x, bits, ratio, symmetric=symmetric)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "is_available", lambda: False)
        there = gradients(x, bits, ratio, symmetric=symmetric)
    assert torch.equal(here[0], there[0])
    for one, other in zip(here[1:], there[1:], strict=True):
        # Up to 150 float32 terms as large as the largest entry, added in another order.
        largest = float(x.abs().max())
        torch.testing.assert_close(one, other, rtol=1e-4, atol=150 * 2e-7 * (1 + largest))


@given(seeds, st.integers(1, 9), sizes, st.integers(2, 8), st.booleans(), ratios)
def test_encoded_rows_are_those_of_the_other_path(
    seed: int, tokens: int, width: int, bits: int, symmetric: bool, ratio: float
) -> None:
    x = outlier_activation(tokens, width, seed)
    grid = affine_grid(x, bits, symmetric=symmetric, clip_high=ratio, clip_low=ratio)
    expected = encode_tokens(quantize(x, grid, bits), grid)
    assert torch.equal(rows.quantize_tokens(x, bits, ratio, None, symmetric), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    x = outlier_activation(3, 40, 0)
    x[1, 7] = bad
    y = fake_quantize_rows(x, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "is_available", lambda: False)
        expected = fake_quantize_rows(x, 4)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


def test_threads_change_nothing() -> None:
    x, before, results = outlier_activation(300, 200, 0), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(x, 4, 0.8, symmetric=False))
    finally:
        torch.set_num_threads(before)
    for one in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(one, results[0], strict=True))
