"""The turn of the whole model: how it begins and ends within a fit."""

from collections.abc import Sequence

import torch
from lightning import Trainer

from duquant.data.datamodule import CalibrationDataModule
from duquant.data.streams import BlockSamples, Stream
from duquant.model.decoder import BlockContext
from duquant.modules.language_model import LanguageModel
from duquant.modules.learner import Learner


@torch.no_grad()
def enter_distillation(
    trainer: Trainer,
    model: LanguageModel,
    data: CalibrationDataModule,
    targets: Stream,
    contexts: Sequence[BlockContext],
) -> None:
    """Let the whole model learn from now on, or go on learning.

    Args:
        trainer: of the fit.
        model: whose turn it is.
        data: gives the calibration windows.
        targets: the original's outputs of this process's windows.
        contexts: what each block's forward needs beside hidden states.
    """
    distillation = model.distillation
    assert distillation is not None
    trainer.strategy.barrier()  # the last block is written
    if not distillation.has_begun:
        forget_steps(trainer, distillation)  # blocks' steps without LWC pass through a parameter
    distillation.processes = data.processes
    distillation.enter(model.directory, model.decoder, contexts)
    windows = data.processes.share(data.calibration_windows())
    data.samples = BlockSamples(windows, targets)
    data.samples_at_once = model.recipe.distillation.batch_size


def finish_distillation(
    trainer: Trainer, model: LanguageModel, data: CalibrationDataModule
) -> None:
    """Store what was learned in the blocks' files."""
    assert model.distillation is not None
    data.samples = None
    data.processes.require_same(
        model.distillation.values.parameters(),
        "it learned other values; use equal machines and numbers of threads",
    )
    if trainer.is_global_zero:
        for index in range(model.num_blocks):
            model.directory.replace_tensors(index, model.distillation.stored_values(index))
    model.decoder.release()


def distillation_complaint(losses: list[float]) -> str:
    """What is wrong with the losses of the epochs, and the remedy; empty if nothing is."""
    if len(losses) < 2 or losses[-1] < losses[0]:
        return ""
    return (
        f"distillation did not lower the loss ({losses[0]:.4g} -> {losses[-1]:.4g}); try a smaller "
        f"--model.distillation.learning_rate, or --model.distillation.epochs 0"
    )


def forget_steps(trainer: Trainer, learner: Learner) -> None:
    """Drop the optimizers' moments of what a turn has learned."""
    for optimizer in trainer.optimizers:
        for parameter in learner.parameters():
            optimizer.state.pop(parameter, None)
