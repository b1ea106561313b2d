"""The quantizer: its laws, its idempotence, its gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.formats.number_format import split_rows
from duquant.ops.affine import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    affine_grid,
    dequantize,
    fake_quantize,
    quantize,
    round_straight_through,
)
from tests.outliers import outlier_activation, seeds

bits_of_any_width = st.integers(2, 8)


def rows_of_values(largest_exponent: int) -> st.SearchStrategy[Tensor]:
    return st.builds(
        lambda seed, rows, columns, exponent, offset: (
            outlier_activation(rows, columns, seed) * 10.0**exponent + offset
        ),
        seeds,
        st.integers(1, 5),
        st.integers(1, 33),
        st.integers(-8, largest_exponent),
        st.sampled_from([0.0, 50.0, -50.0]),
    )


any_rows = rows_of_values(largest_exponent=5)
"""Up to 3e7: scales meet both of their limits."""
moderate_rows = rows_of_values(largest_exponent=1)
"""Up to 3e3: scales meet their lower limit only, so nothing is clamped for its size."""
clip_ratios = st.floats(0.1, 1.0)


@given(any_rows, bits_of_any_width, st.booleans(), clip_ratios)
def test_integers_and_grid_obey_their_ranges(
    x: Tensor, bits: int, symmetric: bool, ratio: float
) -> None:
    grid = affine_grid(x, bits, symmetric=symmetric, clip_high=ratio, clip_low=ratio)
    q = quantize(x, grid, bits)
    assert grid.scale.shape == grid.zero.shape == (x.shape[0], 1)
    assert grid.scale.ge(SMALLEST_SCALE).all()
    assert grid.scale.le(LARGEST_SCALE).all()
    assert torch.equal(grid.zero, grid.zero.round())
    assert grid.zero.abs().le(LARGEST_SCALE).all()
    assert torch.equal(q, q.round())
    assert q.ge(0).all()
    assert q.le(2**bits - 1).all()


@given(any_rows, bits_of_any_width, st.booleans(), clip_ratios)
def test_quantizing_again_with_the_same_grid_changes_nothing(
    x: Tensor, bits: int, symmetric: bool, ratio: float
) -> None:
    grid = affine_grid(x, bits, symmetric=symmetric, clip_high=ratio, clip_low=ratio)
    q = quantize(x, grid, bits)
    once = dequantize(q, grid)
    assert torch.equal(quantize(once, grid, bits), q)
    assert torch.equal(dequantize(quantize(once, grid, bits), grid), once)


@given(moderate_rows, bits_of_any_width)
def test_zero_point_stands_for_zero_where_the_row_changes_sign(x: Tensor, bits: int) -> None:
    x = torch.cat([x, -x], dim=1)
    grid = affine_grid(x, bits)
    assert grid.zero.ge(0).all()
    assert grid.zero.le(2**bits - 1).all()
    with_zero = torch.cat([x, torch.zeros(x.shape[0], 1)], dim=1)
    assert fake_quantize(with_zero, bits)[:, -1].eq(0).all()


@given(seeds, bits_of_any_width)
def test_error_is_at_most_one_step_without_clipping(seed: int, bits: int) -> None:
    x = outlier_activation(4, 32, seed)
    grid = affine_grid(x, bits)
    steps = (fake_quantize(x, bits) - x).abs() / grid.scale
    # Half a step from rounding x and up to another half from rounding the zero point; 1e-3 steps
    # are what float32 loses in x / scale.
    assert steps.max() <= 1 + 1e-3
    unclamped = (x / grid.scale).round() + grid.zero
    inside = unclamped.ge(0) & unclamped.le(2**bits - 1)
    assert steps[inside].max() <= 0.5 + 1e-3


@given(moderate_rows, bits_of_any_width)
def test_symmetric_grid_is_odd_and_centred(x: Tensor, bits: int) -> None:
    middle = 2 ** (bits - 1) - 1
    grid = affine_grid(x, bits, symmetric=True)
    assert grid.zero.eq(middle).all()
    # The scale's lower limit pushes nothing out of range, so both signs are treated alike.
    assert torch.equal(
        fake_quantize(-x, bits, symmetric=True), -fake_quantize(x, bits, symmetric=True)
    )


def test_a_worked_example() -> None:
    x = torch.tensor([[-1.0, 0.0, 0.6, 2.0]])
    grid = affine_grid(x, bits=2)
    assert grid.scale.item() == 1.0  # (2 - -1) / 3
    assert grid.zero.item() == 1.0  # round(1 / 1)
    assert quantize(x, grid, 2).tolist() == [[0, 1, 2, 3]]
    assert fake_quantize(x, 2).tolist() == [[-1, 0, 1, 2]]
    assert fake_quantize(x, 2, clip_high=0.5, clip_low=0.5).tolist() == [[-0.5, 0, 0.5, 1]]


def test_zero_point_leaves_the_range_for_a_row_without_a_sign_change() -> None:
    x = torch.tensor([[10.0, 11.0, 12.0, 13.0]])
    assert affine_grid(x, bits=2).zero.item() == -10
    assert torch.equal(fake_quantize(x, 2), x)


def test_rows_of_zeros_stay_zero() -> None:
    x = torch.zeros(2, 4)
    assert torch.equal(fake_quantize(x, 4), x)
    assert torch.equal(fake_quantize(x, 4, symmetric=True), x)


def test_sixteen_bits_leave_the_tensor_alone() -> None:
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert fake_quantize(x, 16, clip_high=0.1) is x


@given(seeds, st.sampled_from([1, 2, 4, 8]))
def test_groups_are_quantized_one_by_one(seed: int, group_size: int) -> None:
    weight = outlier_activation(3, 16, seed)
    together = fake_quantize(split_rows(weight, group_size), 4).reshape(weight.shape)
    for start in range(0, 16, group_size):
        group = slice(start, start + group_size)
        assert torch.equal(together[:, group], fake_quantize(weight[:, group], 4))
    assert split_rows(weight, None) is weight


def test_rounding_passes_its_gradient_straight_through() -> None:
    x = torch.tensor([-1.5, -0.4, 0.5, 2.6], requires_grad=True)
    y = round_straight_through(x)
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.equal(y.detach(), x.detach().round())
    assert x.grad is not None
    assert x.grad.tolist() == [1, 2, 3, 4]


def closed_form_gradients(x: Tensor, bits: int, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """``d sum(fake_quantize(x)) / d clip_high, d clip_low`` by hand.

    The zero point z is a constant. With u = x / s and q = clamp(round(u) + z, 0, L):

        inside:  x̂ = round(u) s, rounded straight through    dx̂/ds = round(u) - u
        clamped: x̂ = (q - z) s                               dx̂/ds = q - z

    where s = (high max - low min) / L.
    """
    levels = 2**bits - 1
    top, bottom = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)
    scale = (high * top - low * bottom) / levels
    zero = (-low * bottom / scale).round()
    unclamped = (x / scale).round() + zero
    q = unclamped.clamp(0, levels)
    by_scale = torch.where(unclamped == q, (x / scale).round() - x / scale, q - zero)
    total = by_scale.sum(-1, keepdim=True)
    return total * top / levels, total * -bottom / levels


@given(seeds, st.integers(2, 6), st.floats(0.3, 0.999), st.floats(0.3, 0.999))
def test_gradient_of_the_clip_factors_is_the_closed_form(
    seed: int, bits: int, high_ratio: float, low_ratio: float
) -> None:
    x = outlier_activation(5, 24, seed, dtype=torch.float64)
    high = torch.full((5, 1), high_ratio, dtype=torch.float64, requires_grad=True)
    low = torch.full((5, 1), low_ratio, dtype=torch.float64, requires_grad=True)
    fake_quantize(x, bits, clip_high=high, clip_low=low).sum().backward()
    expected_high, expected_low = closed_form_gradients(x, bits, high.detach(), low.detach())
    # float64; both sides add the same 24 terms in another order.
    torch.testing.assert_close(high.grad, expected_high, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(low.grad, expected_low, rtol=1e-9, atol=1e-9)
    assert high.grad is not None
    assert high.grad.abs().sum() > 0


def test_gradient_descent_shrinks_the_range_where_that_pays() -> None:
    """Few large entries among many small ones: the learned factors must beat the start."""
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(1))
    logit = torch.full((8, 1), 4.0, requires_grad=True)
    optimizer = torch.optim.Adam([logit], lr=0.1)
    losses = []
    for _ in range(30):
        ratio = logit.sigmoid()
        loss = (fake_quantize(x, 3, clip_high=ratio, clip_low=ratio) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("shape", [(4, 8), (2, 3, 4, 8), (8,)])
def test_leading_dimensions_are_rows(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    flat = fake_quantize(x.reshape(-1, 8), 4).reshape(shape)
    assert torch.equal(fake_quantize(x, 4), flat)
