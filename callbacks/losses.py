"""Losses of an epoch's steps: read at its end, all at once, and told to the loggers.

A loss lies where it was computed. To know it the host has to wait for everything that the device
was asked before, so it is not asked at every step.
"""

import math
from collections.abc import Sequence

import torch
from lightning import Trainer
from torch import Tensor

from duquant.modules.language_model import LanguageModel


def log_losses(trainer: Trainer, model: LanguageModel, losses: Sequence[Tensor]) -> list[float]:
    """Tell the losses of the epoch that ends, those that are finite, and return them.

    Loggers get them at their steps; callbacks (EarlyStopping) see the last one as a metric.
    """
    if not losses:
        return []
    tag = "distillation/loss" if model.is_distilling else "lwc/loss"
    first = trainer.global_step - len(losses)
    steps = [
        (first + number, loss)
        for number, loss in enumerate(torch.stack(list(losses)).tolist())
        if math.isfinite(loss)
    ]
    if steps:
        model.log(tag, steps[-1][1], logger=False)
    for logger in trainer.loggers:
        for step, loss in steps:
            if (step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                logger.log_metrics({tag: loss, "epoch": trainer.current_epoch}, step)
        logger.save()
    return [loss for _, loss in steps]
