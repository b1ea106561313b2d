"""How a block's parameters move: AdamW, and learning rates that depend on nothing but the clock.

A block has its own steps, so its learning rates start anew with every block. They are computed from
the epoch and the batch, never accumulated: a resumed run continues with the same rates.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning import Trainer

SMALLEST_GRADIENT = 1e-15
Schedule = Literal["cosine", "constant"]


def block_optimizer(groups: Sequence[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW without weight decay over parameter groups with ``params`` and a first rate ``lr``.

    The loss is a mean over activations, which may be small numbers: gradients of 1e-11 are usual
    on small models. AdamW's own ``eps`` of 1e-8 would swallow them and nothing would be learned.

    Away from the CPU it is fused, one kernel that can also be told there to change nothing.
    """
    started = [{**group, "initial_lr": group["lr"]} for group in groups]
    lies_on = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = bool(lies_on) and "cpu" not in lies_on
    return torch.optim.AdamW(
        started, weight_decay=0.0, eps=SMALLEST_GRADIENT, fused=True if fused else None
    )


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step is one kernel; also of a state that was loaded, which brings its options."""
    return all(group.get("fused") for group in optimizer.param_groups)


def merged_groups(blocks: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Groups of several blocks as one list: the first groups of all together, then the second."""
    return [
        {**parts[0], "params": [each for part in parts for each in part["params"]]}
        for parts in zip(*blocks, strict=True)
    ]


def scheduled_rate(schedule: Schedule, first: float, progress: float) -> float:
    """Learning rate that began at ``first``, after a share ``progress`` of a turn's steps."""
    if schedule == "constant":
        return first
    return first * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(
    trainer: Trainer,
    batch_index: int,
    epochs: int,
    *,
    schedule: Schedule,
    rate: float,
    first_epoch: int = 0,
) -> None:
    """Give the trainer's optimizers the rate of the step that is about to begin.

    Args:
        trainer: says which epoch it is.
        batch_index: the step's place in its epoch.
        epochs: of the turn; in 0 nothing is trained.
        schedule: how rates fall.
        rate: first rate of groups that do not say it, as in older checkpoints.
        first_epoch: of the turn, or of any turn before with as many epochs.
    """
    if epochs:
        batches = max(1, int(trainer.num_training_batches))
        epoch = (trainer.current_epoch - first_epoch) % epochs
        progress = (epoch + batch_index / batches) / epochs
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                first = group.get("initial_lr", rate)
                group["lr"] = scheduled_rate(schedule, first, progress)
