"""The run directory: whose it is, what is refused before any long work, and what it will hold."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from callbacks.block_events import BlockObserver
from callbacks.checkpointing import LastCheckpoint
from callbacks.defaults import default_callbacks, default_logger
from callbacks.preflight import Preflight, clip_bytes, describe_job
from callbacks.run_directory import (
    describe_run,
    is_finished,
    prepare_fit,
    prepare_validation,
)
from callbacks.writer_thread import quiet_writer_threads
from duquant.config import LWCConfig
from duquant.data.datamodule import CalibrationDataModule
from duquant.modules.language_model import LanguageModel
from duquant.preflight.disk import PICTURE_BYTES, SPARE_BYTES, disk_bytes
from duquant.preflight.memory import largest_phase
from duquant.processes import ALONE, Processes
from tests.in_process import (
    LIGHTNING_WARNINGS,
    NO_LWC,
    DiskMeter,
    FinishedRun,
    calibrate,
    small_data,
    small_language_model,
    small_trainer,
    without_pictures,
    write_text,
)
from tests.small_run import write_small_model
from tests.tiny_models import write_tiny_model

pytestmark = LIGHTNING_WARNINGS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("source"), blocks=3)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def estimate_disk_bytes(model: LanguageModel, data: CalibrationDataModule) -> int:
    return disk_bytes(describe_job(model, data), clip_bytes(model))


def assert_refused(
    model: LanguageModel, data: Any, words: list[str], *, output_exists: bool = False
) -> None:
    with pytest.raises(ValueError, match=words[0]) as refused:
        prepare_fit(model, data, None)
    for word in words:
        assert word in str(refused.value)
    assert model.output_dir.exists() == output_exists, "a refusal writes nothing"


# Claiming a directory


def test_a_new_run_claims_its_directory(source: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "runs" / "new"
    model, data = small_language_model(source, output), small_data(source, text)
    assert not prepare_fit(model, data, None), "there is nothing to continue"
    assert json.loads((output / "run.json").read_text()) == describe_run(model, data)
    assert model.run_description == describe_run(model, data)
    assert [file.name for file in output.iterdir()] == ["run.json"]


def test_the_same_run_may_come_back(source: Path, text: Path, tmp_path: Path) -> None:
    model, data = small_language_model(source, tmp_path / "run"), small_data(source, text)
    prepare_fit(model, data, None)
    assert not prepare_fit(model, data, None)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    assert prepare_fit(model, data, None), "continue from the checkpoint"
    assert not prepare_fit(model, data, "last"), "the user said so himself"


def test_an_empty_directory_is_nobodys(source: Path, text: Path, tmp_path: Path) -> None:
    prepare_fit(small_language_model(source, tmp_path), small_data(source, text), None)
    assert (tmp_path / "run.json").is_file()


def test_a_directory_of_something_else_is_refused(source: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    model = small_language_model(source, tmp_path)
    words = ["not empty and not a run", str(tmp_path), "another --output_dir"]
    assert_refused(model, small_data(source, text), words, output_exists=True)
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_a_file_in_the_way_is_refused(source: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "letter.txt"
    output.write_text("dear reader")
    model = small_language_model(source, output)
    assert_refused(model, small_data(source, text), ["is a file"], output_exists=True)
    assert output.read_text() == "dear reader"


def test_another_run_is_refused_naming_every_difference(
    source: Path, text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    prepare_fit(small_language_model(source, output), small_data(source, text), None)
    before = (output / "run.json").read_bytes()
    other = small_language_model(source, output, weight_bits=3, lwc=LWCConfig(epochs=7))
    words = [
        "belongs to another run",
        "recipe.weight_bits was 4, now 3",
        "recipe.lwc.epochs was 3, now 7",
        "data.seed was 2, now 9",
        "data.calibration_tokens was",
    ]
    assert_refused(other, small_data(source, text, seed=9), words, output_exists=True)
    assert (output / "run.json").read_bytes() == before


def test_another_model_is_another_run(source: Path, text: Path, tmp_path: Path) -> None:
    """Told by its weights: the same shapes from the same place are not the same model."""
    output, other = tmp_path / "run", tmp_path / "other"
    data = small_data(source, text)
    prepare_fit(small_language_model(source, output), data, None)
    options = {"model_type": "llama", "vocab_size": 1024, "num_hidden_layers": 3}
    write_tiny_model(other, options, seed=1)
    model = small_language_model(other, output)
    assert_refused(model, data, ["model.weights was"], output_exists=True)


def test_a_moved_model_is_the_same_run(source: Path, text: Path, tmp_path: Path) -> None:
    moved = write_small_model(tmp_path / "moved", blocks=3)
    data = small_data(source, text)
    prepare_fit(small_language_model(source, tmp_path / "run"), data, None)
    prepare_fit(small_language_model(moved, tmp_path / "run"), data, None)


# What does not fit


def test_a_sequence_longer_than_the_models_positions(
    source: Path, text: Path, tmp_path: Path
) -> None:
    model = small_language_model(source, tmp_path / "run")
    words = ["sequence_length is 65", "64 positions"]
    assert_refused(model, small_data(source, text, sequence_length=65), words)
    prepare_fit(model, small_data(source, text, sequence_length=64), None)


@pytest.mark.parametrize("place", ["calibration", "validation"])
def test_a_token_beyond_the_vocabulary(text: Path, tmp_path: Path, place: str) -> None:
    """A tokenizer of another model: its ids would read behind the embeddings."""
    tokenizer = write_small_model(tmp_path / "source", blocks=1)
    options = {"model_type": "llama", "vocab_size": 200, "num_hidden_layers": 1}
    small = write_tiny_model(tmp_path / "small", options)
    plain = tmp_path / "zeros.txt"
    plain.write_text("0 " * 2000)
    corpora: dict[str, Any] = {
        "calibration": {"calibration": str(text), "validation": {"text": str(plain)}},
        "validation": {"calibration": str(plain), "validation": {"text": str(text)}},
    }
    largest = int(small_data(tokenizer, plain).calibration_windows().max())
    vocabulary = largest + 1
    options["vocab_size"] = vocabulary
    write_tiny_model(small, options)
    data = small_data(tokenizer, text, **corpora[place])
    model = small_language_model(small, tmp_path / "run")
    assert_refused(model, data, ["the tokenizer gave token", f"knows {vocabulary} tokens"])


def test_not_enough_disk(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 0

    asked: list[Path] = []

    def disk_usage(path: Path) -> type[Usage]:
        asked.append(path)
        return Usage

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    model = small_language_model(source, tmp_path / "deep" / "run")
    data = small_data(source, text)
    Usage.free = estimate_disk_bytes(model, data) - 1
    assert_refused(model, data, ["the run needs about", "are free there", "num_samples"])
    Usage.free += 1
    prepare_fit(model, data, None)
    assert asked == [tmp_path, tmp_path], "the file system on which it will be made"
    written = tmp_path / "deep" / "run" / "streams" / "block_00001.safetensors"
    written.parent.mkdir()
    written.write_bytes(bytes(10_000))
    Usage.free -= 10_000
    prepare_fit(model, data, None)  # what a run has written is not needed once more


def test_not_enough_memory(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = small_language_model(source, tmp_path / "run"), small_data(source, text)
    phase = largest_phase(describe_job(model, data))
    monkeypatch.setattr("callbacks.preflight.available_bytes", lambda: phase.num_bytes - 1)
    words = ["more memory", phase.name, "are available", phase.remedy]
    assert_refused(model, data, words)
    monkeypatch.setattr("callbacks.preflight.available_bytes", lambda: phase.num_bytes)
    data.processes = Processes(count=4, local_count=2)
    assert_refused(model, data, ["more memory", "in 2 processes", "are available"])
    data.processes = ALONE
    prepare_fit(model, data, None)


HEADERS = 200_000
"""Bytes of names in safetensors and checkpoints, of records and of the tokenizer."""
ESTIMATED: dict[str, dict[str, Any]] = {
    "LWC": {},
    "no LWC": {"lwc": NO_LWC},
    "W16": {"weight_bits": 16},
    "groups": {"weight_bits": 8, "group_size": 16},
}


@pytest.mark.parametrize("stream_memory_gb", [None, 0])
@pytest.mark.parametrize("case", ESTIMATED)
def test_the_estimate_is_a_close_upper_bound(
    source: Path, text: Path, tmp_path: Path, case: str, stream_memory_gb: float | None
) -> None:
    """All but pictures and logs, for which a constant is added."""
    model = small_language_model(source, tmp_path, **ESTIMATED[case])
    options: dict[str, Any] = {"num_samples": 64, "batch_size": 32}
    data = small_data(source, text, **options, stream_memory_gb=stream_memory_gb)
    meter = DiskMeter(tmp_path)
    calibrate(model, data, LastCheckpoint(tmp_path), meter)
    tensors = estimate_disk_bytes(model, data) - SPARE_BYTES - 3 * PICTURE_BYTES
    assert meter.largest - HEADERS <= tensors <= 1.25 * meter.largest


def test_a_whole_run_stays_within_its_estimate(finished_run: FinishedRun) -> None:
    estimate = estimate_disk_bytes(finished_run.model, finished_run.data)
    assert finished_run.largest_bytes <= estimate


# Finished runs


def test_finished_means_measured(finished_run: FinishedRun, source: Path, tmp_path: Path) -> None:
    assert is_finished(finished_run.model)
    model = small_language_model(source, tmp_path)
    assert not is_finished(model)
    (tmp_path / "summary.json").touch()
    assert not is_finished(model), "the blocks are missing"


def test_validation_needs_a_run(source: Path, text: Path, tmp_path: Path) -> None:
    model = small_language_model(source, tmp_path / "run")
    with pytest.raises(ValueError, match="holds no run: run fit first"):
        prepare_validation(model, small_data(source, text))


def test_validation_of_another_recipe_is_refused(finished_run: FinishedRun) -> None:
    data = small_data(finished_run.source, finished_run.text)
    other = small_language_model(finished_run.source, finished_run.output, activation_bits=8)
    with pytest.raises(ValueError, match=r"recipe\.activation_bits was 4, now 8"):
        prepare_validation(other, data)


def test_validation_may_use_other_texts(finished_run: FinishedRun, tmp_path: Path) -> None:
    other = write_text(tmp_path / "other.txt", skip=20)
    model = small_language_model(finished_run.source, finished_run.output)
    prepare_validation(model, small_data(finished_run.source, other, num_samples=3))
    too_long = small_data(finished_run.source, other, sequence_length=65)
    with pytest.raises(ValueError, match="sequence_length is 65"):
        prepare_validation(model, too_long)


def test_the_documented_files_are_there(finished_run: FinishedRun) -> None:
    names = {file.name for file in finished_run.output.iterdir()}
    assert names == {
        "run.json", "model", "checkpoints", "blocks", "tensorboard", "summary.json",
        "preflight.json", "report.html", "report.md",
    }  # fmt: skip
    assert not list(finished_run.output.rglob(".*")), "no temporary file stays"


# A directory that is removed while a run writes into it


class Remove(BlockObserver):
    """Removes a directory when a hook is called for the second time."""

    def __init__(self, directory: Path, hook: str) -> None:
        self.directory, self.calls = directory, 0
        setattr(self, hook, self._remove)

    def _remove(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == 2:
            # In one step: a thread of the run may be writing a file into it.
            self.directory.rename(gone := self.directory.with_name("gone"))
            shutil.rmtree(gone)


@pytest.mark.parametrize(
    ("hook", "stream_memory_gb"),
    [
        ("on_train_batch_start", None),
        ("on_train_batch_end", 0),
        ("on_block_entered", None),
        ("on_block_entered", 0),
        ("on_block_finished", None),
    ],
)
def test_a_directory_that_is_removed_is_named(
    source: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hook: str,
    stream_memory_gb: float | None,
) -> None:
    """And no half of it is made anew; TensorBoard's thread keeps its traceback to itself."""
    without_pictures(monkeypatch)
    output = tmp_path / "run"
    model, data = small_language_model(source, output), small_data(source, text, num_samples=4)
    data.stream_memory_gb = stream_memory_gb
    prepare_fit(model, data, None)
    every = default_callbacks(output, with_progress=False)
    callbacks = [callback for callback in every if not isinstance(callback, Preflight)]
    trainer = small_trainer(Remove(output, hook), *callbacks, logger=default_logger(output))
    gone = pytest.raises(ValueError, match="run was removed or emptied while the run wrote")
    with quiet_writer_threads(), gone:
        trainer.fit(model, datamodule=data)
    assert not (output / "run.json").exists()
    assert not list(output.rglob("*.ckpt")), "nothing is there to go on from"
