"""What a block leaves is written while the next one is entered, and on disk when that is said."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from callbacks.block_events import BlockObserver, BlockRecord
from callbacks.block_progression import BlockProgression
from callbacks.boundary_files import BoundaryFiles
from callbacks.checkpointing import DurableCheckpointIO, LastCheckpoint, last_checkpoint
from callbacks.defaults import default_callbacks
from callbacks.run_directory import prepare_fit
from callbacks.tensorboard_views import TensorBoardViews
from duquant.checksum import check_tensors
from duquant.data.stream_files import StreamFiles
from duquant.data.streams import Streams
from duquant.export.model_directory import ModelDirectory
from duquant.model.decoder import Decoder
from duquant.model.site_report import SiteReport
from duquant.modules.language_model import LanguageModel
from duquant.write_behind import WriteBehind
from duquant.write_errors import CannotWriteError
from tests.block_by_block import quantize_decoder, small_recipe
from tests.in_process import (
    LIGHTNING_WARNINGS,
    NO_LWC,
    small_data,
    small_language_model,
    small_trainer,
    write_text,
)
from tests.small_run import write_small_model
from tests.test_write_errors import files_of_at_most
from tests.tiny_models import token_ids

pytestmark = LIGHTNING_WARNINGS
PATIENCE = 60.0
"""Seconds; only a run that waits for what waits for it needs them."""
BLOCKS = 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("source"), blocks=BLOCKS)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


class Gates(BlockObserver):
    """Open when the run has come so far."""

    def __init__(self) -> None:
        self.entered = [threading.Event() for _ in range(BLOCKS)]
        self.trained = [threading.Event() for _ in range(BLOCKS)]

    def on_block_entered(
        self, trainer: Trainer, model: LanguageModel, index: int, reports: dict[str, SiteReport]
    ) -> None:
        self.entered[index].set()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        self.trained[pl_module.block_index].set()


class Durable(BlockObserver):
    """Looks, whenever a checkpoint is put together, for what it will say."""

    def __init__(self) -> None:
        self.boundaries: list[int] = []

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        index, output = pl_module.block_index, pl_module.output_dir
        for block in range(index):
            pl_module.directory.require_block(block, pl_module.decoder)
            BlockRecord.load(BlockRecord.path(output, block))
        if index < BLOCKS:
            check_tensors(output / "streams" / f"block_{index:05d}.safetensors")
        self.boundaries.append(index)


def test_the_next_block_is_entered_while_the_last_is_written(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every writer waits for what the run does after it: it would wait in vain for itself."""
    gates, durable, behind = Gates(), Durable(), list[str]()
    write_packed, save = ModelDirectory.write_packed, StreamFiles.save

    def write_slowly(directory: ModelDirectory, index: int, tensors: Any) -> None:
        if index + 1 < BLOCKS:
            assert gates.entered[index + 1].wait(PATIENCE)
            behind.append(f"block {index}")
        write_packed(directory, index, tensors)

    def save_slowly(files: StreamFiles, block: int, streams: Streams) -> Streams:
        assert gates.entered[block].wait(PATIENCE)
        behind.append(f"streams {block}")
        return save(files, block, streams)

    def draw_slowly(reports: dict[str, SiteReport], title: str) -> bytes:
        assert gates.trained[int(title.split()[-1])].wait(PATIENCE)
        behind.append(f"picture of {title}")
        return b"picture"

    monkeypatch.setattr(ModelDirectory, "write_packed", write_slowly)
    monkeypatch.setattr(StreamFiles, "save", save_slowly)
    monkeypatch.setattr("callbacks.tensorboard_views.draw_outliers", draw_slowly)
    model, data = small_language_model(source, tmp_path / "run"), small_data(source, text)
    prepare_fit(model, data, None)
    writer = WriteBehind()
    callbacks = [
        BlockProgression(writer),
        TensorBoardViews(),
        gates,
        durable,
        LastCheckpoint(model.output_dir, writer),
    ]
    small_trainer(*callbacks).fit(model, datamodule=data)
    assert sorted(behind) == [
        *(f"block {index}" for index in range(BLOCKS - 1)),
        *(f"picture of block {index}" for index in range(BLOCKS)),
        *(f"streams {index}" for index in range(BLOCKS)),
    ]
    assert sorted(set(durable.boundaries)) == list(range(BLOCKS + 1))


def written_behind(path: Path) -> DurableCheckpointIO:
    checkpoints = DurableCheckpointIO()
    checkpoints.writer, checkpoints.behind = WriteBehind(), path
    return checkpoints


def test_checkpoints_that_others_ask_for_are_on_disk_at_once(tmp_path: Path) -> None:
    """Nobody would wait for them, and Lightning removes older ones as soon as they are saved."""
    checkpoints, own = written_behind(tmp_path / "last.ckpt"), tmp_path / "epoch=1.ckpt"
    checkpoints.writer.submit = lambda job: pytest.fail("handed over")  # type: ignore
    checkpoints.save_checkpoint({"duquant_run": {}}, own)
    checkpoints.load_checkpoint(own)
    with files_of_at_most(10), pytest.raises(CannotWriteError, match=r"epoch=1\.ckpt"):
        checkpoints.save_checkpoint({"duquant_run": {}}, own)


def test_a_checkpoint_is_a_copy(tmp_path: Path) -> None:
    gate, path = threading.Event(), tmp_path / "last.ckpt"
    checkpoints = written_behind(path)
    assert checkpoints.writer is not None
    values = torch.zeros(3)

    def close_until_changed() -> None:
        assert gate.wait(PATIENCE)

    submit = checkpoints.writer.submit

    def submit_behind(job: Callable[[], object]) -> None:
        submit(close_until_changed)
        submit(job)

    checkpoints.writer.submit = submit_behind  # type: ignore[method-assign]
    checkpoints.save_checkpoint({"duquant_run": {}, "values": values}, path)
    values += 1
    assert not path.exists()
    gate.set()
    checkpoints.writer.wait()
    assert torch.equal(checkpoints.load_checkpoint(path)["values"], torch.zeros(3))


def test_a_large_checkpoint_is_not_copied_but_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"states": [{"moment": torch.zeros(30)}, (torch.zeros(2),)]}
    path, jobs = tmp_path / "last.ckpt", list[object]()
    checkpoints = written_behind(path)
    assert checkpoints.writer is not None
    checkpoints.writer.submit = jobs.append  # type: ignore[method-assign]
    monkeypatch.setattr("callbacks.checkpointing.LARGEST_COPIED_CHECKPOINT", 4 * 32)
    checkpoints.save_checkpoint({"duquant_run": {}, **values}, path)
    assert len(jobs) == 1
    assert not path.exists()
    monkeypatch.setattr("callbacks.checkpointing.LARGEST_COPIED_CHECKPOINT", 4 * 32 - 1)
    checkpoints.save_checkpoint({"duquant_run": {}, **values}, path)
    assert len(jobs) == 1
    checkpoints.load_checkpoint(path)


def test_a_checkpoint_that_cannot_be_written_is_told_of_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    checkpoints = written_behind(path)
    assert checkpoints.writer is not None
    content = {"duquant_run": {}, "values": torch.zeros(1000)}
    with files_of_at_most(100):
        checkpoints.save_checkpoint(content, path)
        with pytest.raises(CannotWriteError, match=r"last\.ckpt cannot be written: File too large"):
            checkpoints.save_checkpoint(content, path)
    assert not path.exists()
    checkpoints.save_checkpoint(content, path)
    checkpoints.writer.wait()
    checkpoints.load_checkpoint(path)


@pytest.mark.parametrize(
    ("logger", "is_behind"), [(CSVLogger, True), (None, True), (WandbLogger, False)]
)
def test_loggers_that_upload_checkpoints_find_them(
    logger: type[Logger] | None, is_behind: bool, tmp_path: Path
) -> None:
    """A logger is told of a checkpoint the moment it was saved."""
    writer, trainer = WriteBehind(), small_trainer(logger=False)
    trainer.loggers = [] if logger is None else [logger.__new__(logger)]
    LastCheckpoint(tmp_path, writer).setup(trainer, LightningModule(), "fit")
    checkpoints = trainer.strategy.checkpoint_io
    assert isinstance(checkpoints, DurableCheckpointIO)
    assert checkpoints.writer is (writer if is_behind else None)
    assert checkpoints.behind == last_checkpoint(tmp_path)


@torch.no_grad()
def test_a_block_is_a_copy(source: Path, text: Path, tmp_path: Path) -> None:
    recipe = small_recipe()
    quantized = quantize_decoder(Decoder(str(source), torch.float32), recipe, token_ids(seed=1))[0]
    expected = ModelDirectory(tmp_path / "expected", recipe)
    expected.write_block(0, quantized)
    gate, writer = threading.Event(), WriteBehind()
    writer.submit(lambda: gate.wait(PATIENCE))
    model = small_language_model(source, tmp_path / "run", lwc=NO_LWC)
    BoundaryFiles(model, small_data(source, text), writer).write_block(model, quantized)
    for tensor in [*quantized.layer.parameters(), *quantized.layer.buffers()]:
        tensor.zero_()
    gate.set()
    writer.wait()
    written = model.directory.block_file(0).read_bytes()
    assert written == expected.block_file(0).read_bytes()


def test_all_default_callbacks_share_one_writer(tmp_path: Path) -> None:
    """Else the size of the directory and the checkpoint would not wait for what is before them."""
    callbacks = default_callbacks(tmp_path)
    (progression,) = (each for each in callbacks if isinstance(each, BlockProgression))
    shared = [vars(each) for each in callbacks]
    others = [
        held["writer"] if "writer" in held else held["_writer"]
        for held in shared
        if held.keys() & {"writer", "_writer"}
    ]
    assert len(others) == 3
    assert all(other is progression.writer for other in others)
    assert last_checkpoint(tmp_path).parent.name == "checkpoints"
