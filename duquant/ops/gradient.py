"""Whether a gradient is to pass through an activation: then it must stay in floating point."""

import torch
from torch import Tensor


def records_gradient(x: Tensor) -> bool:
    """Whether autograd records what is computed from ``x``."""
    return torch.is_grad_enabled() and x.requires_grad
