"""The straight-through estimator: rounded values with the gradient of what was rounded.

Rounding is flat almost everywhere, so its true gradient teaches nothing. The estimator (Bengio et
al. 2013) pretends that it is the identity. Written as ``x + (values - x).detach()`` it would change
the values by a rounding error, and an infinite entry to NaN; here they stay what they are.
"""

from typing import Any

import torch
from torch import Tensor

from duquant.ops.gradient import records_gradient


def straight_through(x: Tensor, values: Tensor) -> Tensor:
    """``values``, a rounded ``x`` of the same shape; all of their gradient goes to ``x``.

    Example:
        >>> x = torch.tensor([0.4, 1.2], requires_grad=True)
        >>> y = straight_through(x, x.round())
        >>> torch.autograd.grad((y * torch.tensor([2.0, 3.0])).sum(), x)
        (tensor([2., 3.]),)
    """
    if not records_gradient(x):
        return values.detach()
    result: Tensor = _StraightThrough.apply(x, values)
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
