"""What a block's training makes small: how far its outputs are from their targets."""

import torch
from torch import Tensor
from torch.nn import functional as F

from duquant.config import Recipe
from duquant.model.batch import BlockBatch

SMALLEST_SQUARE = 1e-12
"""Least square of a token's target in the relative loss."""


def block_loss(output: Tensor, batch: BlockBatch, recipe: Recipe) -> Tensor:
    """Loss of the block's outputs ``(samples, tokens, hidden)``, a scalar.

    With the augmented loss the outputs are also compared with those of the full-precision block on
    the quantized stream (DuQuant, appendix).
    """
    distance = _relative if recipe.training.loss == "relative" else F.mse_loss
    loss = distance(output.float(), batch.target.float())
    if recipe.lwc.augmented_loss:
        loss = loss + distance(output.float(), batch.augmented_target.float())
    return loss


def _relative(output: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens of ``r = ‖output - target‖² / ‖target‖²``, or of ``2 - 1/r`` from 1 on.

    A token that is massive in the quantized model alone has an ``r`` of thousands. It is lost to
    any training, and would own the gradient; here it has next to none. The slope at 1 is 1 on both
    sides.
    """
    squares = target.square().sum(dim=-1).clamp(min=SMALLEST_SQUARE)
    errors = (output - target).square().sum(dim=-1) / squares
    beyond = 2.0 - 1.0 / errors.clamp(min=1.0)
    return torch.where(errors < 1.0, errors, beyond).mean()
