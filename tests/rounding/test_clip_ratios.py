"""The search for clip ratios beside trying everything by hand."""

import pytest
import torch
from torch import Tensor

from duquant.formats.integer import Integer
from duquant.formats.number_format import split_rows
from duquant.ops.affine import fake_quantize
from duquant.rounding.clip_ratios import search_clip_ratios
from tests.outliers import outlier_activation

LARGEST_RATIO, SMALLEST_RATIO = max(Integer().clip_ratios), min(Integer().clip_ratios)

OUT, WIDTH = 6, 32


@pytest.fixture
def x() -> Tensor:
    """Correlated inputs, so that the Gram matrix is far from diagonal."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator)
    return outlier_activation(200, WIDTH, seed=1) @ mixing


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(2))


def output_errors(weight: Tensor, x: Tensor, ratios: Tensor, **options: bool) -> Tensor:
    """Squared output error of every channel, in float64, from the inputs themselves."""
    quantized = fake_quantize(weight, 4, clip_high=ratios, clip_low=ratios, **options)
    return (x.double() @ (weight - quantized).double().t()).square().sum(dim=0)


@pytest.mark.parametrize("symmetric", [False, True])
def test_no_ratio_of_the_ladder_is_better(weight: Tensor, x: Tensor, symmetric: bool) -> None:
    found = search_clip_ratios(weight, x.t() @ x, Integer(4, symmetric))
    assert found.shape == (OUT, 1)
    least = output_errors(weight, x, found, symmetric=symmetric)
    for step in range(30):
        ratio = torch.full((OUT, 1), LARGEST_RATIO - 0.02 * step)
        # float32 sums of 32 x 32 terms may decide a tie the other way.
        assert (least <= 1.001 * output_errors(weight, x, ratio, symmetric=symmetric)).all()


def test_correlations_decide(weight: Tensor, x: Tensor) -> None:
    """Weighing channels by their own energy alone finds ratios that cost more."""
    gram = x.t() @ x
    full, diagonal = (
        search_clip_ratios(weight, g, Integer(4)) for g in (gram, gram.diagonal().diag())
    )
    costs = [output_errors(weight, x, ratios).sum() for ratios in (full, diagonal)]
    assert costs[0] < 0.9 * costs[1]


def test_a_group_sees_its_own_inputs(weight: Tensor, x: Tensor) -> None:
    found = search_clip_ratios(weight, x.t() @ x, Integer(4, group_size=8)).view(OUT, 4)
    for group in range(4):
        columns = slice(8 * group, 8 * group + 8)
        own = x[:, columns]
        alone = search_clip_ratios(weight[:, columns].contiguous(), own.t() @ own, Integer(4))
        assert torch.equal(found[:, group : group + 1], alone)
    assert found.numel() == len(split_rows(weight, 8))


def test_outliers_without_energy_are_clipped_away() -> None:
    """Weights ten times larger than the rest that read inputs that are always zero."""
    weight = torch.linspace(-1, 1, WIDTH).repeat(OUT, 1)
    weight[:, 0], weight[:, -1] = -10, 10
    energy = torch.ones(WIDTH)
    energy[0] = energy[-1] = 0
    assert (search_clip_ratios(weight, energy.diag(), Integer(4)) < 0.6).all()


def test_errors_that_are_not_finite_choose_nothing(weight: Tensor) -> None:
    gram = torch.full((WIDTH, WIDTH), float("nan"))
    assert torch.equal(
        search_clip_ratios(weight, gram, Integer(4)),
        torch.full((OUT, 1), LARGEST_RATIO),
    )


def test_more_bits_need_less_clipping(weight: Tensor) -> None:
    means = [
        float(search_clip_ratios(weight, torch.eye(WIDTH), Integer(bits)).mean())
        for bits in (2, 4, 8)
    ]
    assert means == sorted(means)
    assert means[0] >= SMALLEST_RATIO - 1e-6
