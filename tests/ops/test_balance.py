"""Balanced bases: what they promise, and what they do with moments that say nothing."""

import pytest
import torch
from torch import Tensor

from duquant.ops.balance import DAMPING, balancing, shrunk


def moments(*shape: int, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, 40, 8, generator=torch.Generator().manual_seed(seed)).double()
    rows = rows * torch.logspace(0, 2, 8, dtype=torch.float64)
    return rows.transpose(-1, -2) @ rows


def damped(matrix: Tensor) -> Tensor:
    return matrix + DAMPING * matrix.diagonal().mean() * torch.eye(len(matrix)).double()


def cost(base: Tensor, first: Tensor, second: Tensor) -> float:
    inverse = torch.linalg.inv(base)
    return float((base.t() @ first @ base).trace() * (inverse @ second @ inverse.t()).trace())


def test_both_moments_become_the_same_diagonal() -> None:
    first, second = moments(3, seed=1), moments(3, seed=2)
    bases = balancing(first, second)
    for base, one, other in zip(bases, first, second, strict=True):
        inverse = torch.linalg.inv(base)
        changed = base.t() @ damped(one) @ base
        torch.testing.assert_close(changed, inverse @ damped(other) @ inverse.t())
        torch.testing.assert_close(changed, changed.diagonal().diag(), atol=1e-8, rtol=1e-8)


def test_no_other_basis_costs_less() -> None:
    first, second = damped(moments(seed=1)), damped(moments(seed=2))
    best = cost(balancing(moments(seed=1), moments(seed=2)), first, second)
    generator = torch.Generator().manual_seed(3)
    others = [torch.eye(8).double(), (second.diagonal() / first.diagonal()).pow(0.25).diag()]
    others += [torch.randn(8, 8, generator=generator).double() for _ in range(20)]
    found = balancing(moments(seed=1), moments(seed=2))
    others += [
        found @ (torch.eye(8) + 0.01 * torch.randn(8, 8, generator=generator)).double()
        for _ in range(20)
    ]
    assert all(cost(other, first, second) > best for other in others)


def test_equal_moments_of_no_direction_need_no_change() -> None:
    base = balancing(torch.eye(4), torch.eye(4))
    torch.testing.assert_close(base @ base.t(), torch.eye(4).double())


def test_few_samples_are_trusted_less() -> None:
    whole = moments()
    off = ~torch.eye(8, dtype=torch.bool)
    for samples, kept in ((0, 0.0), (8, 0.5), (792, 0.99)):
        changed = shrunk(whole, samples)
        torch.testing.assert_close(changed[off], kept * whole[off])
        torch.testing.assert_close(changed.diagonal(), whole.diagonal())


@pytest.mark.parametrize(
    "first",
    [
        torch.zeros(8, 8),
        torch.full((8, 8), torch.nan),
        torch.full((8, 8), torch.inf),
        torch.ones(8, 8),
        torch.eye(8) * 1e-30,
        torch.diag(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 1e6])),
    ],
)
def test_every_basis_is_finite_and_can_be_inverted(first: Tensor) -> None:
    for pair in ((first, torch.eye(8)), (torch.eye(8), first), (first, first)):
        base = balancing(*pair)
        assert base.isfinite().all()
        assert torch.linalg.cond(base) < 1e5
