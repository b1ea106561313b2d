"""The relative loss: every token counts alike, and those that are lost hardly at all."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from duquant.config import Recipe, TrainingConfig
from duquant.model.batch import BlockBatch
from duquant.modules.block_loss import ERROR_LIMIT, block_loss

RECIPE = replace(Recipe(), training=TrainingConfig(loss="relative"))


def _loss(output: Tensor, target: Tensor) -> Tensor:
    batch = BlockBatch(quantized_input=target, target=target, augmented_target=target)
    return block_loss(output, batch, RECIPE)


def _token(error: float, size: float = 1.0) -> tuple[Tensor, Tensor]:
    """Output and target of one token, whose squared error is ``error`` times its square."""
    target = torch.zeros(1, 1, 8)
    target[..., 0] = size
    output = target.clone()
    output[..., 1] = size * error**0.5
    return output, target


def test_of_tokens_that_are_near_it_is_the_mean_of_the_tokens_relative_errors() -> None:
    target = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    target[1, 2] *= 1000  # massive, and no more important than others
    output = (target * 1.1).requires_grad_()
    expected = ((output - target).square().sum(-1) / target.square().sum(-1)).mean()
    loss = _loss(output, target)
    assert torch.equal(loss, expected)
    (found,) = torch.autograd.grad(loss, output)
    (plain,) = torch.autograd.grad(expected, output)
    assert torch.equal(found, plain)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(0.25, 0.25), (2.0, 2.0), (10.0, 10.0), (20.0, 15.0), (40.0, 17.5), (1e6, 20 - 1e-4)],
)
def test_of_tokens_that_are_lost_it_grows_no_further(error: float, expected: float) -> None:
    assert _loss(*_token(error)).item() == pytest.approx(expected, rel=1e-6)


def test_its_slope_has_no_jump() -> None:
    slopes = []
    for error in (ERROR_LIMIT - 1e-3, ERROR_LIMIT, ERROR_LIMIT + 1e-3):
        output, target = _token(error)
        slopes.append(torch.autograd.grad(_loss(output.requires_grad_(), target), output)[0])
    for slope in slopes[1:]:
        torch.testing.assert_close(slope, slopes[0], rtol=1e-3, atol=1e-6)


def test_a_token_that_is_massive_in_the_quantized_model_alone_owns_no_gradient() -> None:
    lost, ordinary = _token(3000.0, size=40.0), _token(0.03, size=40.0)
    output = torch.cat([lost[0], ordinary[0]], dim=1).requires_grad_()
    target = torch.cat([lost[1], ordinary[1]], dim=1)
    (gradient,) = torch.autograd.grad(_loss(output, target), output)
    of_lost, of_ordinary = gradient[0].norm(dim=-1).tolist()
    assert 0 < of_lost < of_ordinary / 100


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_loss_or_gradient(value: float) -> None:
    output, target = _token(0.03)
    output[..., 2] = value
    loss = _loss(output.requires_grad_(), target)
    (gradient,) = torch.autograd.grad(loss, output)
    assert not (loss.isfinite() and gradient.isfinite().all())
