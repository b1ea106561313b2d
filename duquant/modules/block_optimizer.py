"""How a block's parameters move: AdamW, and learning rates that depend on nothing but the clock.

A block has its own steps, so its learning rates start anew with every block. They are computed from
the epoch and the batch, never accumulated: a resumed run continues with the same rates.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Trainer

from duquant.config import LWCConfig

SMALLEST_GRADIENT = 1e-15


def block_optimizer(groups: Sequence[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW without weight decay over parameter groups with ``params`` and a first rate ``lr``.

    The loss is a mean over activations, which may be small numbers: gradients of 1e-11 are usual
    on small models. AdamW's own ``eps`` of 1e-8 would swallow them and nothing would be learned.
    """
    started = [{**group, "initial_lr": group["lr"]} for group in groups]
    return torch.optim.AdamW(started, weight_decay=0.0, eps=SMALLEST_GRADIENT)


def merged_groups(blocks: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Groups of several blocks as one list: the first groups of all together, then the second."""
    return [
        {**parts[0], "params": [each for part in parts for each in part["params"]]}
        for parts in zip(*blocks, strict=True)
    ]


def scheduled_rate(lwc: LWCConfig, first: float, progress: float) -> float:
    """Learning rate that began at ``first``, after a share ``progress`` of a block's steps."""
    if lwc.schedule == "constant":
        return first
    return first * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(trainer: Trainer, lwc: LWCConfig, batch_index: int) -> None:
    """Give the trainer's optimizers the rate of the step that is about to begin."""
    if lwc.epochs:
        batches = max(1, int(trainer.num_training_batches))
        epoch = trainer.current_epoch % lwc.epochs
        progress = (epoch + batch_index / batches) / lwc.epochs
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                first = group.get("initial_lr", lwc.learning_rate)  # older checkpoints have none
                group["lr"] = scheduled_rate(lwc, first, progress)
