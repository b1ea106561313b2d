"""Values as given, bit for bit, and the gradient of the identity."""

import torch

from duquant.ops.straight_through import straight_through


def test_values_and_gradient() -> None:
    x = torch.tensor([1e38, -3.0, 0.1, torch.inf], requires_grad=True)
    values = torch.tensor([2.5e38, -1.0, 0.0, torch.inf])
    y = straight_through(x, values)
    assert torch.equal(y, values)
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (gradient,) = torch.autograd.grad(y, x, upstream)
    assert torch.equal(gradient, upstream)


def test_without_a_gradient_nothing_is_recorded() -> None:
    x = torch.ones(2)
    assert not straight_through(x, x.round()).requires_grad
    with torch.no_grad():
        assert not straight_through(x.requires_grad_(), x.round()).requires_grad
