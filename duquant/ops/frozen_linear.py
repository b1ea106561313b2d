"""A linear layer whose weight takes no gradient and is made anew whenever it is needed.

Autograd would keep the weight from the forward to the backward pass, every layer's at the same
time. Only the gradient of the input is wanted, ``∂L/∂x = ∂L/∂y · W``, and for that the weight is
asked for once more.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WeightSource = Callable[[torch.dtype], Tensor]
"""Makes the weight ``(out, in)`` in a dtype, the same values every time."""


def frozen_linear(x: Tensor, weight: WeightSource, bias: Tensor | None) -> Tensor:
    """``x · Wᵀ + bias``, differentiable in ``x`` and in the bias.

    Args:
        x: ``(..., in)``.
        weight: makes ``W``.
        bias: ``(out,)`` or ``None``.

    Returns:
        ``(..., out)``.
    """
    output: Tensor = _FrozenLinear.apply(x, weight, bias)
    return output


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: WeightSource, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
        to_bias = grad.reshape(-1, grad.shape[-1]).sum(dim=0) if ctx.needs_input_grad[2] else None
        return grad @ ctx.weight(grad.dtype), None, to_bias
