"""A run within the test's own process: model, data and trainer as ``cli.py`` puts them together.

Modules that use it set ``pytestmark = LIGHTNING_WARNINGS``: what the command line silences on
purpose is no error in their tests either.
"""

import itertools
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger

from callbacks.checkpointing import DurableCheckpointIO
from callbacks.run_directory import describe_run
from cli import EXPECTED_WARNINGS
from duquant.config import LWCConfig, RotationConfig
from duquant.data.datamodule import CalibrationDataModule
from duquant.data.python_topics import python_topics
from duquant.modules.language_model import LanguageModel

LIGHTNING_WARNINGS = [
    pytest.mark.filterwarnings(f"ignore:{message}") for message in EXPECTED_WARNINGS
]
ROTATION = RotationConfig(block_size=16, max_steps=8)
LWC = LWCConfig(epochs=3, learning_rate=0.1, batch_size=2)
"""Larger steps than usual: few of them must be enough for a loss to fall visibly."""
NO_LWC = LWCConfig(epochs=0)


def write_text(path: Path, *, skip: int = 0) -> Path:
    """A few topics of the Python reference as a file: tokenized in no time."""
    topics = itertools.islice(python_topics("train"), skip, skip + 6)
    path.write_text("\n\n".join(topics), encoding="utf-8")
    return path


def small_data(model: Path, text: Path, **options: Any) -> CalibrationDataModule:
    """Eight short calibration windows and four for validation."""
    settings: dict[str, Any] = {
        "calibration": str(text),
        "validation": {"topics": str(text)},
        "num_samples": 8,
        "sequence_length": 32,
        "validation_windows": 4,
        "batch_size": 2,
    }
    return CalibrationDataModule(str(model), **{**settings, **options})


def small_language_model(model: Path, output: Path, **options: Any) -> LanguageModel:
    """A language model whose blocks calibrate in a fraction of a second."""
    settings: dict[str, Any] = {"rotation": ROTATION, "lwc": LWC}
    return LanguageModel(str(model), str(output), **{**settings, **options})


def small_trainer(*callbacks: Callback, logger: Logger | bool = False, **options: Any) -> Trainer:
    """A trainer with the command line's defaults, on the CPU."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "reload_dataloaders_every_n_epochs": 1,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "plugins": [DurableCheckpointIO()],
    }
    return Trainer(callbacks=list(callbacks), logger=logger, **{**settings, **options})


def calibrate(
    model: LanguageModel, data: CalibrationDataModule, *callbacks: Callback, **options: Any
) -> Trainer:
    """Fit as the command line does; returns the trainer."""
    model.run_description = describe_run(model, data)
    trainer = small_trainer(*callbacks, **options)
    trainer.fit(model, datamodule=data)
    return trainer
