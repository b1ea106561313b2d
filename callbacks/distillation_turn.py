"""The turn of the whole model: how it begins and ends within a fit.

What learns begins at the values in the blocks' files, which are written once more at the end. So
that a run that is killed in between begins anew at the same values, they are kept in a file of
their own until the run is finished.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import Trainer

from duquant.data.datamodule import CalibrationDataModule
from duquant.data.streams import BlockSamples, Stream
from duquant.distillation import keep_start, open_model
from duquant.model.decoder import BlockContext
from duquant.modules.language_model import LanguageModel
from duquant.modules.learner import Learner


def start_file(model: LanguageModel) -> Path:
    """Where the values that the turn begins with are kept."""
    return model.output_dir / "streams" / "before_distillation.safetensors"


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
    distillation, file = model.distillation, start_file(model)
    assert distillation is not None
    if trainer.is_global_zero and not file.is_file():
        keep_start(distillation, model.directory, file)
    trainer.strategy.barrier()  # everyone reads the file
    if not distillation.has_begun:
        forget_steps(trainer, distillation)
    distillation.processes = data.processes
    open_model(distillation, model.directory, model.decoder, contexts, file)
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
            model.directory.replace_tensors(index, model.distillation.learned(index))
    model.decoder.release()


def forget_steps(trainer: Trainer, learner: Learner) -> None:
    """Drop the optimizers' moments of what a turn has learned."""
    for optimizer in trainer.optimizers:
        for parameter in learner.parameters():
            optimizer.state.pop(parameter, None)
