"""Runs that train transforms and clips of activations: what they learn, keep, and resume."""

from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from callbacks.block_events import BlockRecord
from callbacks.block_progression import BlockProgression
from callbacks.checkpointing import LastCheckpoint, last_checkpoint
from duquant.config import FormatConfig, RotationConfig, TrainingConfig
from tests.callbacks.test_block_progression import assert_same_tensors
from tests.in_process import (
    LEARNS_ALL,
    LIGHTNING_WARNINGS,
    calibrate,
    small_data,
    small_language_model,
    small_trainer,
    write_text,
)
from tests.small_run import write_small_model

pytestmark = LIGHTNING_WARNINGS
EPOCHS = LEARNS_ALL["lwc"].epochs


class StopAfter(Callback):
    """Ends the fit when so many epochs are over."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("model"), blocks=2)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def whole(source: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    calibrate(small_language_model(source, output, **LEARNS_ALL), small_data(source, text))
    return output


@pytest.mark.parametrize("epochs", [1, EPOCHS, EPOCHS + 2])
@pytest.mark.parametrize("first", [None, 0])
def test_it_goes_on_where_it_stopped(
    whole: Path, source: Path, text: Path, tmp_path: Path, epochs: int, first: float | None
) -> None:
    """Inside of the first block, between two, and inside of the second; from memory and disk."""
    model = small_language_model(source, tmp_path, **LEARNS_ALL)
    data = small_data(source, text, stream_memory_gb=first)
    calibrate(model, data, StopAfter(epochs), LastCheckpoint(tmp_path))
    assert not model.is_calibrated
    again = small_language_model(source, tmp_path, **LEARNS_ALL)
    again.run_description = model.run_description
    trainer = small_trainer(BlockProgression(), LastCheckpoint(tmp_path))
    trainer.fit(again, datamodule=data, ckpt_path=last_checkpoint(tmp_path))
    assert_same_tensors(tmp_path, whole)


def test_peaks_do_not_depend_on_an_interruption(source: Path, text: Path, tmp_path: Path) -> None:
    """They are taken with the clip factors that training starts from, also in its middle."""
    data = small_data(source, text)
    options = {"lwc": LEARNS_ALL["lwc"], "activations": FormatConfig("nvfp4")}
    calibrate(small_language_model(source, tmp_path / "whole", **options), data)
    model = small_language_model(source, tmp_path / "resumed", **options)
    calibrate(model, data, StopAfter(1), LastCheckpoint(tmp_path / "resumed"))
    again = small_language_model(source, tmp_path / "resumed", **options)
    again.run_description = model.run_description
    trainer = small_trainer(BlockProgression(), LastCheckpoint(tmp_path / "resumed"))
    trainer.fit(again, datamodule=data, ckpt_path=last_checkpoint(tmp_path / "resumed"))
    assert_same_tensors(tmp_path / "resumed", tmp_path / "whole")


def test_a_checkpoint_holds_the_transforms_of_one_block(
    source: Path, text: Path, tmp_path: Path
) -> None:
    model = small_language_model(source, tmp_path, **LEARNS_ALL)
    calibrate(model, small_data(source, text), StopAfter(EPOCHS + 1), LastCheckpoint(tmp_path))
    state = torch.load(last_checkpoint(tmp_path), weights_only=True)
    held = {name.split(".")[1] for name in state["state_dict"] if ".transforms." in name}
    assert held == {"1"}
    moments = state["optimizer_states"][0]["state"].values()
    assert 0 < len(moments) <= len(list(model.blocks[1].parameters()))


def test_losses_fall_further_than_with_clip_factors_alone(
    whole: Path, source: Path, text: Path, tmp_path: Path
) -> None:
    alone = {**LEARNS_ALL, "rotation": RotationConfig(block_size=16, max_steps=4)}
    alone["training"] = TrainingConfig(inputs="full_precision", loss="relative")
    calibrate(small_language_model(source, tmp_path, **alone), small_data(source, text))
    (first, *_), (other, *_) = (BlockRecord.load_all(each, 2) for each in (whole, tmp_path))
    assert all(1 < site["condition"] < 100 for site in first.sites.values())
    assert not any("condition" in site for site in other.sites.values())
    assert first.lwc_losses[-1] < 0.95 * other.lwc_losses[-1]
