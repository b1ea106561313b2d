"""How clip factors move: AdamW, and a learning rate that depends on nothing but the clock.

A block has its own steps, so its learning rate starts anew with every block. It is computed from
the epoch and the batch, never accumulated: a resumed run continues with the same rate.
"""

import math
from collections.abc import Iterator

import torch
from lightning import Trainer
from torch import nn

from duquant.config import LWCConfig, Recipe

SMALLEST_GRADIENT = 1e-15


def clip_optimizer(parameters: Iterator[nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW for clip factors.

    The loss is a mean over activations, which may be small numbers: gradients of 1e-11 are usual
    on small models. AdamW's own ``eps`` of 1e-8 would swallow them and nothing would be learned.
    """
    return torch.optim.AdamW(
        parameters, lr=recipe.lwc.learning_rate, weight_decay=0.0, eps=SMALLEST_GRADIENT
    )


def scheduled_rate(lwc: LWCConfig, progress: float) -> float:
    """Learning rate after a share ``progress`` (0 to 1) of a block's steps."""
    if lwc.schedule == "constant":
        return lwc.learning_rate
    return lwc.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(trainer: Trainer, lwc: LWCConfig, batch_index: int) -> None:
    """Give the trainer's optimizers the rate of the step that is about to begin."""
    if lwc.epochs:
        batches = max(1, int(trainer.num_training_batches))
        epoch = trainer.current_epoch % lwc.epochs
        rate = scheduled_rate(lwc, (epoch + batch_index / batches) / lwc.epochs)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
