"""The factorization behind GPTQ: what it says of a cost, and that it always exists."""

import math

import pytest
import torch
from torch import Tensor

from duquant.ops.error_feedback import error_feedback


def gram_of(tokens: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    x = torch.randn(tokens, width, generator=generator) @ mixing
    return x.t() @ x


def test_it_splits_the_cost_into_squares() -> None:
    gram = gram_of(200, 12).double()
    arriving, damping = error_feedback(gram, 0.0)
    assert damping == 0
    assert torch.equal(arriving, arriving.tril(-1))
    unit = arriving.double().t() + torch.eye(12, dtype=torch.float64)
    inverse = torch.linalg.inv(unit)
    diagonal = inverse @ gram @ inverse.t()  # A⁻¹ G A⁻ᵀ
    # float32 feedback.
    off = diagonal - torch.diag(diagonal.diagonal())
    assert off.abs().max() < 1e-5 * gram.abs().max()
    assert diagonal.diagonal().min() > 0


def test_it_is_the_update_of_the_paper() -> None:
    """Frantar et al. 2022: the rows of the upper Cholesky factor of the inverse."""
    gram = gram_of(100, 10, seed=1).double()
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(10, dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theirs = weight.clone()
    for k in range(10):
        error = (theirs[:, k] - theirs[:, k].round()) / factor[k, k]
        theirs[:, k:] -= error.unsqueeze(-1) * factor[k, k:] * (torch.arange(k, 10) > k)
    feedback = error_feedback(gram, 0.01)[0].double().t()
    ours = weight.clone()
    for k in range(10):
        ours[:, k] += (weight[:, :k] - ours[:, :k].round()) @ feedback[:k, k]
    assert torch.equal(ours.round(), theirs.round())
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)  # float32 feedback


@pytest.mark.parametrize("tokens", [1, 5, 63])
def test_too_few_tokens_are_damped(tokens: int) -> None:
    feedback, damping = error_feedback(gram_of(tokens, 64), 0.0)
    assert 0 < damping < 0.1
    assert feedback.isfinite().all()


def test_damping_grows_until_an_indefinite_matrix_can_be_factored() -> None:
    gram = gram_of(100, 16, seed=3)
    gram -= 2 * torch.eye(16) * gram.diagonal().min()
    gram.diagonal().clamp_(min=1e-3)
    feedback, damping = error_feedback(gram, 0.01)
    assert damping > 0.01
    assert feedback.isfinite().all()


def test_inputs_without_energy_take_no_part() -> None:
    gram = gram_of(100, 12, seed=4)
    dead = torch.tensor([0, 5, 11])
    gram[dead] = gram[:, dead] = 0
    feedback, _ = error_feedback(gram, 0.01)
    assert feedback[dead].eq(0).all()
    assert feedback[:, dead].eq(0).all()
    alive = [column for column in range(12) if column not in dead]
    assert feedback[alive][:, alive].any()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_unit_of_the_inputs_does_not_matter(scale: float) -> None:
    gram = gram_of(100, 12, seed=5)
    feedback, damping = error_feedback(gram * scale, 0.01)
    torch.testing.assert_close(feedback, error_feedback(gram, 0.01)[0], rtol=1e-4, atol=1e-5)
    assert damping == 0.01


def test_a_matrix_of_zeros_feeds_nothing_back() -> None:
    feedback, damping = error_feedback(torch.zeros(6, 6), 0.01)
    assert feedback.eq(0).all()
    assert damping == 0.01


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_is_infinitely_damped(value: float) -> None:
    gram = gram_of(100, 6)
    gram[2, 3] = value
    feedback, damping = error_feedback(gram, 0.01)
    assert feedback.eq(0).all()
    assert damping == math.inf


def test_the_given_matrix_is_left_alone() -> None:
    for dtype in (torch.float32, torch.float64):
        gram = gram_of(3, 6).to(dtype)
        before = gram.clone()
        error_feedback(gram, 0.01)
        assert torch.equal(gram, before)
