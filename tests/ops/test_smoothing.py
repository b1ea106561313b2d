"""Smoothing scales: the formula, its limits, and the product they must not change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duquant.ops.smoothing import (
    SMALLEST_SCALE,
    first_weight_peak,
    repeat_for_heads,
    share_within_groups,
    smoothing_scale,
    weight_peak,
)
from tests.outliers import outlier_activation, random_weight, seeds


@given(seeds, st.floats(0, 1))
def test_scaling_input_and_weight_leaves_their_product(seed: int, alpha: float) -> None:
    x, weight = outlier_activation(12, 32, seed).double(), random_weight(8, 32, seed).double()
    scale = smoothing_scale(x.abs().amax(0), weight_peak([weight]), alpha).double()
    assert scale.shape == (32,)
    assert scale.ge(SMALLEST_SCALE).all()
    # float64 division and multiplication round once each.
    torch.testing.assert_close((x / scale) @ (weight * scale).T, x @ weight.T, rtol=1e-9, atol=1e-9)


def test_formula_by_hand() -> None:
    activation, weight = torch.tensor([16.0, 4.0]), torch.tensor([4.0, 0.25])
    assert smoothing_scale(activation, weight, 0.5).tolist() == [2.0, 4.0]
    assert smoothing_scale(activation, weight, 1.0).tolist() == [16.0, 4.0]
    assert smoothing_scale(activation, weight, 0.0).tolist() == [0.25, 4.0]


def test_a_channel_that_calibration_never_excited_counts_as_excited_like_the_median() -> None:
    activation, weight = torch.tensor([0.0, 1.0, 9e-6, 4.0, 9.0]), torch.tensor([1.0, 1, 4, 1, 1])
    assert smoothing_scale(activation, weight, 0.5).tolist() == [2.0, 1.0, 1.0, 2.0, 3.0]
    assert smoothing_scale(torch.zeros(2), torch.tensor([1.0, 4.0]), 0.5).tolist() == [1.0, 0.5]


def test_a_channel_that_no_weight_reads_leaves_the_activation() -> None:
    scale = smoothing_scale(torch.tensor([1000.0]), torch.zeros(1), 0.5)
    assert scale.item() == pytest.approx((1000 / 1e-5) ** 0.5)


@given(seeds, st.integers(1, 3))
def test_a_dead_column_of_the_first_weight_is_that_of_the_others(seed: int, others: int) -> None:
    weights = [random_weight(8, 32, seed + number) for number in range(1 + others)]
    assert torch.equal(first_weight_peak(weights), weight_peak(weights[:1]))
    weights[0][:, 3], weights[0][:, 9] = 0, 9e-6
    weights[0][:, 20] *= 1e-3
    expected = torch.where(
        torch.isin(torch.arange(32), torch.tensor([3, 9, 20])),
        weight_peak(weights),
        weight_peak(weights[:1]),
    )
    assert torch.equal(first_weight_peak(weights), expected)


def test_half_precision_peaks_give_float32_scales() -> None:
    peak = torch.tensor([3.0, 5.0], dtype=torch.bfloat16)
    assert smoothing_scale(peak, peak, 0.5).dtype == torch.float32


def test_weight_peak_looks_at_every_weight() -> None:
    first, second = torch.tensor([[1.0, -5.0], [2.0, 3.0]]), torch.tensor([[-4.0, 1.0]])
    assert weight_peak([first]).tolist() == [2, 5]
    assert weight_peak([first, second]).tolist() == [4, 5]


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), seeds)
def test_query_heads_of_a_group_share_their_peak(
    num_groups: int, heads_per_group: int, head_dim: int, seed: int
) -> None:
    num_heads = num_groups * heads_per_group
    generator = torch.Generator().manual_seed(seed)
    peak = torch.rand(num_heads * head_dim, generator=generator)
    shared = share_within_groups(peak, num_groups=num_groups, head_dim=head_dim)
    repeated = repeat_for_heads(shared, num_heads=num_heads, head_dim=head_dim)
    for head in range(num_heads):
        group = head // heads_per_group
        for channel in range(head_dim):
            heads_of_group = range(group * heads_per_group, (group + 1) * heads_per_group)
            largest = max(peak[h * head_dim + channel].item() for h in heads_of_group)
            assert shared[group * head_dim + channel] == largest
            assert repeated[head * head_dim + channel] == largest
