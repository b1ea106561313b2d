"""Clip factors: where they start and what they can reach."""

import pytest
import torch

from duquant.formats.number_format import Clip
from duquant.nn.clipping import INITIAL_LOGIT, ClipFactors, FixedClip


def test_learned_factors_start_at_the_sigmoid_of_four() -> None:
    factors = ClipFactors(3)
    for factor in factors()[:2]:
        assert factor.shape == (3, 1)
        torch.testing.assert_close(factor, torch.full((3, 1), INITIAL_LOGIT).sigmoid())
    assert INITIAL_LOGIT == 4.0


def test_both_logits_train_and_nothing_else() -> None:
    factors = ClipFactors(2)
    assert [name for name, _ in factors.named_parameters()] == ["high_logit", "low_logit"]
    high, low, _ = factors()
    (2 * high + 3 * low).sum().backward()
    slope = high.detach() * (1 - high.detach())
    torch.testing.assert_close(factors.high_logit.grad, 2 * slope)
    torch.testing.assert_close(factors.low_logit.grad, 3 * slope)


@pytest.mark.parametrize("logit", [-100.0, 0.0, 100.0])
def test_factors_stay_between_zero_and_one(logit: float) -> None:
    factors = ClipFactors(1)
    torch.nn.init.constant_(factors.high_logit, logit)
    assert 0 <= factors()[0].item() <= 1


def test_fixed_ratio_has_nothing_to_train() -> None:
    clip = FixedClip(0.8)
    assert clip() == Clip(0.8, 0.8)
    assert not list(clip.parameters())


def test_factors_start_where_they_are_told() -> None:
    factors, ratios = ClipFactors(2), torch.tensor([[0.4], [0.98]])
    factors.start_at(ratios)
    for factor in factors()[:2]:
        torch.testing.assert_close(factor, ratios)
        assert factor.requires_grad
