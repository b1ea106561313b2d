"""Block progression: how long a fit is, what it refuses, what it announces."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer

from callbacks.block_events import BlockObserver, BlockRecord
from callbacks.block_progression import BlockProgression
from callbacks.checkpointing import LastCheckpoint, last_checkpoint
from duquant.config import LWCConfig, RoundingConfig
from duquant.model.site_report import SiteReport
from duquant.model.structure import SITES
from duquant.modules.language_model import LanguageModel
from tests.in_process import (
    LIGHTNING_WARNINGS,
    LWC,
    NO_LWC,
    FinishedRun,
    calibrate,
    small_data,
    small_language_model,
    small_trainer,
    write_text,
)
from tests.reporting.test_block_tables import massive
from tests.small_run import stored_tensors, write_small_model

pytestmark = LIGHTNING_WARNINGS
BLOCKS = 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("source"), blocks=BLOCKS)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def test_another_module_is_refused() -> None:
    trainer = small_trainer(BlockProgression())
    with pytest.raises(ValueError, match="needs a LanguageModel"):
        BlockProgression().setup(trainer, LightningModule(), "fit")


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_the_fit_is_as_long_as_all_blocks(
    source: Path, text: Path, tmp_path: Path, epochs: int
) -> None:
    lwc = LWCConfig(epochs=epochs, batch_size=4)
    model = small_language_model(source, tmp_path, lwc=lwc)
    trainer = calibrate(model, small_data(source, text, batch_size=4))
    assert trainer.current_epoch == BLOCKS * max(1, epochs)
    steps = trainer.fit_loop.epoch_loop._batches_that_stepped
    assert steps == (BLOCKS * epochs * 2 if epochs else BLOCKS)
    assert model.is_calibrated


@pytest.mark.parametrize(("damping", "is_raised"), [(0.0, True), (0.01, False)])
def test_a_record_says_where_more_damping_was_needed_than_the_recipes(
    source: Path, text: Path, tmp_path: Path, damping: float, is_raised: bool
) -> None:
    """The Gram matrices of 32 tokens in 64 channels and more cannot be factored undamped."""
    rounding = RoundingConfig("gptq", damping=damping)
    model = small_language_model(source, tmp_path, lwc=NO_LWC, rounding=rounding)
    calibrate(model, small_data(source, text, num_samples=1, batch_size=1))
    for record in BlockRecord.load_all(tmp_path, BLOCKS):
        words = r"damping raised to [0-9.e-]+ for [a-z_.]+_proj, the most of 7 linears"
        assert re.fullmatch(words if is_raised else "", record.damping)


class Diary(BlockObserver):
    """Writes down what is announced."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, int]] = []
        self.memory: list[int] = []
        self.loaders: list[torch.Tensor] = []

    def on_block_entered(
        self, trainer: Trainer, model: LanguageModel, index: int, reports: dict[str, SiteReport]
    ) -> None:
        assert list(reports) == [site.name for site in SITES]
        assert model.block_index == index
        self.entries.append(("entered", index))
        self.memory.append(sum(block.quantized is not None for block in model.blocks))
        self.loaders.append(trainer.datamodule.samples.quantized_input)  # type: ignore[attr-defined]

    def on_block_finished(
        self, trainer: Trainer, model: LanguageModel, record: BlockRecord
    ) -> None:
        assert len(record.lwc_losses) == LWC.epochs
        self.entries.append(("finished", record.index))


def test_blocks_come_one_after_the_other(source: Path, text: Path, tmp_path: Path) -> None:
    diary = Diary()
    calibrate(small_language_model(source, tmp_path), small_data(source, text), diary)
    assert diary.entries == [("entered", 0), ("finished", 0), ("entered", 1), ("finished", 1)]
    assert diary.memory == [1, 1], "one block of weights at a time"
    first, second = diary.loaders
    assert first.shape == second.shape == (8, 32, 64)
    assert not torch.equal(first, second)


def test_a_finished_fit_has_nothing_left_to_do(finished_run: FinishedRun) -> None:
    files = [*finished_run.output.rglob("*.safetensors"), *finished_run.output.rglob("*.json")]
    before = {file: file.read_bytes() for file in files}
    model = small_language_model(finished_run.source, finished_run.output)
    model.run_description = finished_run.model.run_description
    trainer = small_trainer(BlockProgression(), LastCheckpoint(finished_run.output))
    checkpoint = finished_run.output / "checkpoints" / "last.ckpt"
    trainer.fit(model, datamodule=finished_run.data, ckpt_path=checkpoint)
    assert model.is_calibrated
    assert {file: file.read_bytes() for file in files} == before


class Stop(BlockObserver):
    """Ends the fit after its first block."""

    def on_block_finished(
        self, trainer: Trainer, model: LanguageModel, record: BlockRecord
    ) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize(
    ("victim", "complaint"),
    [
        ("streams/block_00001.safetensors", "is missing"),
        ("model/model-block-00000.safetensors", "is damaged.*put its file back, or start anew"),
    ],
)
def test_a_damaged_file_is_missed_by_name_when_the_run_goes_on(
    source: Path, text: Path, tmp_path: Path, victim: str, complaint: str
) -> None:
    """Before anything is computed; a finished block, too, and not when everything is measured."""
    data, model = small_data(source, text), small_language_model(source, tmp_path)
    calibrate(model, data, Stop(), LastCheckpoint(tmp_path))
    assert model.block_index == 1
    file = tmp_path / victim
    if complaint == "is missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    again, diary = small_language_model(source, tmp_path), Diary()
    again.run_description = model.run_description
    trainer = small_trainer(BlockProgression(), diary, LastCheckpoint(tmp_path))
    with pytest.raises(ValueError, match=f"{file.name} {complaint}"):
        trainer.fit(again, datamodule=data, ckpt_path=last_checkpoint(tmp_path))
    assert diary.entries == []


# Records


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    record = BlockRecord(
        3,
        [2.0, 1.0],
        4,
        5.5,
        6,
        {"mlp_input": {"peak_before": 7.0, "peak_after": 2.0}},
        0.6,
        "K",
        "d",
        {"mlp_input": 0.5},
        [massive(40.0)],
    )
    record.save(tmp_path)
    assert BlockRecord.load_all(tmp_path, 5) == [record]
    values = record.to_dict()
    assert (values["lwc_loss_first"], values["lwc_loss_last"]) == (2.0, 1.0)


def test_a_record_of_the_version_before_is_read(tmp_path: Path) -> None:
    values = BlockRecord(0).to_dict()
    del values["relative_error"], values["complaint"], values["damping"]
    del values["site_errors"], values["massive_tokens"]
    assert BlockRecord.from_dict(values) == BlockRecord(0, relative_error=None, complaint="")


def test_a_record_without_lwc_has_no_losses(tmp_path: Path) -> None:
    values = BlockRecord(0).to_dict()
    assert values["lwc_loss_first"] is None
    assert values["lwc_loss_last"] is None


def test_the_current_record_is_part_of_a_checkpoint() -> None:
    progression = BlockProgression()
    progression.record = BlockRecord(1, [3.0, 2.5], 2, 9.0)
    state: dict[str, Any] = progression.state_dict()
    other = BlockProgression()
    other.load_state_dict(state)
    assert other.record == progression.record
    progression.record.lwc_losses.append(1.0)
    assert other.record.lwc_losses == [3.0, 2.5], "a copy"


def test_without_lwc_nothing_is_kept_to_train_on(source: Path, text: Path, tmp_path: Path) -> None:
    data = small_data(source, text)
    calibrate(small_language_model(source, tmp_path, lwc=NO_LWC), data)
    assert data.samples is None


# Where streams lie


@pytest.mark.parametrize(
    "lwc", [NO_LWC, LWC, LWCConfig(epochs=1, batch_size=2, augmented_loss=True)]
)
def test_streams_on_disk_change_no_bit(
    source: Path, text: Path, tmp_path: Path, lwc: LWCConfig
) -> None:
    kept, mapped = tmp_path / "kept", tmp_path / "mapped"
    calibrate(small_language_model(source, kept, lwc=lwc), small_data(source, text))
    data = small_data(source, text, stream_memory_gb=0)
    calibrate(small_language_model(source, mapped, lwc=lwc), data)
    assert not (mapped / "streams").exists()
    assert_same_tensors(mapped, kept)


@pytest.mark.parametrize("first", [None, 0])
def test_a_run_may_go_on_with_another_amount_of_memory(
    source: Path, text: Path, tmp_path: Path, first: float | None
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    calibrate(small_language_model(source, whole), small_data(source, text))
    model = small_language_model(source, halves)
    data = small_data(source, text, stream_memory_gb=first)
    calibrate(model, data, Stop(), LastCheckpoint(halves))
    again = small_language_model(source, halves)
    again.run_description = model.run_description
    other = small_data(source, text, stream_memory_gb=0 if first is None else None)
    trainer = small_trainer(BlockProgression(), LastCheckpoint(halves))
    trainer.fit(again, datamodule=other, ckpt_path=last_checkpoint(halves))
    assert_same_tensors(halves, whole)


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    expected = stored_tensors(theirs)
    found = stored_tensors(ours)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
