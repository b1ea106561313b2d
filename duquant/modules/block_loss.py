"""What a block's training makes small: how far its outputs are from their targets."""

import torch
from torch import Tensor
from torch.nn import functional as F

from duquant.config import Recipe
from duquant.model.batch import BlockBatch

SMALLEST_SQUARE = 1e-12
"""Least square of a token's target in the relative loss."""

ERROR_LIMIT = 10.0
"""Relative squared error of a token beyond which its weight in the gradient falls."""


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
    """Mean over tokens of ``r = ‖output - target‖² / ‖target‖²``, a robust loss.

    A token that is massive in the quantized model alone has an ``r`` of thousands, and the gradient
    would be that token's. From ``c = ERROR_LIMIT`` on ``c (2 - c/r)`` takes the place of ``r``: its
    slope is 1 at ``c`` and falls to 0.
    """
    squares = target.square().sum(dim=-1).clamp(min=SMALLEST_SQUARE)
    errors = (output - target).square().sum(dim=-1) / squares
    beyond = ERROR_LIMIT * (2.0 - ERROR_LIMIT / errors.clamp(min=ERROR_LIMIT))
    return torch.where(errors < ERROR_LIMIT, errors, beyond).mean()
