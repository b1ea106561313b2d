"""A run within the test's own process: model, data and trainer as ``cli.py`` puts them together.

Modules that use it set ``pytestmark = LIGHTNING_WARNINGS``: what the command line silences on
purpose is no error in their tests either.
"""

import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from PIL import Image
from rich.console import Console

from callbacks.block_progression import BlockProgression
from callbacks.checkpointing import DurableCheckpointIO
from callbacks.defaults import default_callbacks, default_logger
from callbacks.progress import CalibrationProgress
from callbacks.run_directory import describe_run, prepare_fit
from callbacks.run_summary import RunSummary
from cli import EXPECTED_WARNINGS
from duquant.config import (
    ClippingConfig,
    LWCConfig,
    RotationConfig,
    SmoothingConfig,
    TrainingConfig,
)
from duquant.data.datamodule import CalibrationDataModule
from duquant.data.python_topics import python_topics
from duquant.model.site_report import SiteReport
from duquant.modules.language_model import LanguageModel
from tests.small_run import write_small_model

LIGHTNING_WARNINGS = [
    pytest.mark.filterwarnings(f"ignore:{message}") for message in EXPECTED_WARNINGS
]
ROTATION = RotationConfig(block_size=16, max_steps=8)
LWC = LWCConfig(epochs=3, learning_rate=0.1, batch_size=2)
"""Larger steps than usual: few of them must be enough to move every factor."""
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


LEARNS_ALL: dict[str, Any] = {
    "rotation": RotationConfig(block_size=16, max_steps=4, transform="affine_permute"),
    "smoothing": SmoothingConfig(subtract_mean=True),
    "clipping": ClippingConfig(activations="search"),
    "lwc": LWCConfig(epochs=3, batch_size=2, learning_rate=0.1),
    "training": TrainingConfig(True, 0.01, "full_precision", "relative"),
}
"""Whatever can be trained beside clip factors of weights."""


def small_language_model(model: Path, output: Path, **options: Any) -> LanguageModel:
    """A language model whose blocks calibrate in a fraction of a second."""
    settings: dict[str, Any] = {"rotation": ROTATION, "lwc": LWC, "reuse_full_precision": False}
    return LanguageModel(str(model), str(output), **{**settings, **options})


def small_trainer(*callbacks: Callback, logger: Logger | bool = False, **options: Any) -> Trainer:
    """A trainer with the command line's defaults, on the CPU."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
        "enable_progress_bar": any(isinstance(c, CalibrationProgress) for c in callbacks),
        "enable_model_summary": False,
        "reload_dataloaders_every_n_epochs": 1,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "plugins": [DurableCheckpointIO()],
    }
    return Trainer(callbacks=list(callbacks), logger=logger, **{**settings, **options})


def without_pictures(patched: pytest.MonkeyPatch) -> None:
    """Outlier pictures of one pixel: to draw them takes half the time of a small run."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, format="png")

    def draw(reports: dict[str, SiteReport], title: str) -> bytes:
        assert title
        for report in reports.values():
            assert report.magnitudes
            assert all(x.numel() and x.isfinite().all() for x in report.magnitudes.values())
        return buffer.getvalue()

    for place in ("tensorboard_views", "preflight"):
        patched.setattr(f"callbacks.{place}.draw_outliers", draw)


def calibrate(
    model: LanguageModel, data: CalibrationDataModule, *callbacks: Callback, **options: Any
) -> Trainer:
    """Fit, with the block progression and what else is given; returns the trainer."""
    model.run_description = describe_run(model, data)
    trainer = small_trainer(BlockProgression(), *callbacks, **options)
    trainer.fit(model, datamodule=data)
    return trainer


@dataclass(frozen=True)
class FinishedRun:
    """A run that went through everything: fit and validation, with every default callback.

    Attributes:
        source: directory of the original model.
        text: the only corpus.
        output: the run directory.
        model: the language model that was fitted.
        data: its data.
        printed: everything that was printed, without a terminal.
        largest_bytes: most that the run directory held at any time.
    """

    source: Path
    text: Path
    output: Path
    model: LanguageModel
    data: CalibrationDataModule
    printed: str
    largest_bytes: int


class DiskMeter(Callback):
    """Watches how much a run directory holds after every epoch."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.largest = 0

    def on_train_epoch_end(self, *_: Any) -> None:
        held = sum(file.stat().st_size for file in self.output.rglob("*") if file.is_file())
        self.largest = max(self.largest, held)


def finish_run(directory: Path, **options: Any) -> FinishedRun:
    """Run all of it in a fresh directory."""
    source, text = write_small_model(directory / "source", blocks=2), directory / "text.txt"
    output, printed = directory / "run", io.StringIO()
    data = small_data(source, write_text(text))
    model = small_language_model(source, output, report_round_to_nearest=True, **options)
    prepare_fit(model, data, None)
    callbacks, meter = default_callbacks(output), DiskMeter(output)
    for callback in callbacks:
        if isinstance(callback, CalibrationProgress | RunSummary):
            callback.console = Console(file=printed, width=100)
    trainer = small_trainer(*callbacks, meter, logger=default_logger(output))
    trainer.fit(model, datamodule=data)
    trainer.validate(model, data, verbose=False)
    return FinishedRun(source, text, output, model, data, printed.getvalue(), meter.largest)
