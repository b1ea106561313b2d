"""``duquant.quantize``: the command's model directory, from Python."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

import duquant
from duquant import quantization
from duquant.config import DistillationConfig
from duquant.export.model_card import CARD
from duquant.export.model_directory import ModelDirectory
from duquant.json_files import read_json
from duquant.model.checkpoint import INDEX
from duquant.model.decoder import Decoder
from duquant.modules import distillation
from duquant.preflight import placement
from duquant.preflight.memory import device_phase
from duquant.write_errors import CannotWriteError
from tests.in_process import (
    LIGHTNING_WARNINGS,
    LWC,
    NO_LWC,
    ROTATION,
    calibrate,
    small_data,
    small_language_model,
    write_text,
)
from tests.small_run import write_small_model

pytestmark = LIGHTNING_WARNINGS
PATIENCE = 60.0
"""Seconds; only a run that waits for its files needs them."""
SAMPLES = {"num_samples": 8, "sequence_length": 32}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("source"), blocks=2)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def recipe(**options: Any) -> duquant.Recipe:
    return duquant.Recipe(**{"rotation": ROTATION, "lwc": LWC, **options})


@pytest.mark.parametrize("epochs", [0, 2], ids=["", "distilled"])
@pytest.mark.parametrize("lwc", [LWC, NO_LWC], ids=["LWC", "no LWC"])
def test_it_writes_the_tensors_of_the_command(
    source: Path, text: Path, tmp_path: Path, lwc: Any, epochs: int
) -> None:
    options = {"lwc": lwc, "distillation": DistillationConfig(epochs=epochs, batch_size=4)}
    model = small_language_model(source, tmp_path / "run", **options)
    calibrate(model, small_data(source, text, batch_size=lwc.batch_size))
    finished = []
    directory = duquant.quantize(
        source,
        text.read_text(encoding="utf-8"),
        recipe(**options),
        output_dir=tmp_path / "model",
        gradient_checkpointing=lwc is LWC,  # decides memory and time alone
        on_block=lambda index, count: finished.append((index, count)),
        **SAMPLES,
    )
    assert finished == [(0, 2), (1, 2)]
    for file in sorted(set(read_json(directory / INDEX)["weight_map"].values())):
        ours, theirs = load_file(directory / file), load_file(model.directory.path / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_blocks_are_written_while_the_next_one_is_calibrated(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block 0's file is kept back until block 1 is read."""
    begun, written = threading.Event(), []
    load, write = Decoder.load_block, ModelDirectory.write_packed

    def load_block(self: Decoder, index: int) -> Any:
        if index == 1:
            begun.set()
        return load(self, index)

    def write_packed(self: ModelDirectory, index: int, tensors: Any) -> None:
        assert begun.wait(PATIENCE)
        write(self, index, tensors)
        written.append((index, threading.current_thread().name))

    monkeypatch.setattr(Decoder, "load_block", load_block)
    monkeypatch.setattr(ModelDirectory, "write_packed", write_packed)
    words = text.read_text(encoding="utf-8")
    options = {"recipe": recipe(lwc=NO_LWC), **SAMPLES}
    duquant.quantize(source, words, output_dir=tmp_path / "model", **options)
    assert [index for index, _ in written] == [0, 1]
    assert all(name.startswith("write-behind") for _, name in written)


def test_a_file_that_cannot_be_written_ends_it(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_packed(self: ModelDirectory, index: int, tensors: Any) -> None:
        raise CannotWriteError(f"block {index}: the disk is full")

    monkeypatch.setattr(ModelDirectory, "write_packed", write_packed)
    finished: list[int] = []
    with pytest.raises(CannotWriteError, match="block 0: the disk is full"):
        duquant.quantize(
            source,
            text.read_text(encoding="utf-8"),
            recipe(lwc=NO_LWC),
            output_dir=tmp_path / "model",
            on_block=lambda index, _: finished.append(index),
            **SAMPLES,
        )
    assert finished == [0]
    assert not (tmp_path / "model" / INDEX).exists()


def test_a_run_that_ends_early_leaves_the_blocks_that_it_finished(
    source: Path, text: Path, tmp_path: Path
) -> None:
    def stop(index: int, count: int) -> None:
        raise KeyboardInterrupt

    words = text.read_text(encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        duquant.quantize(
            source,
            words,
            recipe(lwc=NO_LWC),
            output_dir=tmp_path / "model",
            on_block=stop,
            **SAMPLES,
        )
    assert [file.name for file in (tmp_path / "model").glob("*.safetensors")] == [
        "model-block-00000.safetensors"
    ]


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_what_blocks_computed_may_be_held(
    is_asked_for: bool, source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputed: list[Any] = []

    def count(block: Any, *arguments: Any, **options: Any) -> Any:
        recomputed.append(block)
        return checkpoint(block, *arguments, **options)

    monkeypatch.setattr(distillation, "checkpoint", count)
    duquant.quantize(
        source,
        text.read_text(encoding="utf-8"),
        recipe(lwc=NO_LWC, distillation=DistillationConfig(epochs=1, batch_size=4)),
        output_dir=tmp_path / "model",
        gradient_checkpointing=is_asked_for,
        **SAMPLES,
    )
    assert bool(recomputed) == is_asked_for


def test_a_model_in_memory_gives_what_its_directory_does(
    source: Path, text: Path, tmp_path: Path
) -> None:
    texts = text.read_text(encoding="utf-8").split("\n\n")
    plain = recipe(lwc=NO_LWC)
    first = duquant.quantize(source, texts, plain, output_dir=tmp_path / "1", **SAMPLES)
    model = AutoModelForCausalLM.from_pretrained(source)
    second = duquant.quantize(model, texts, plain, output_dir=tmp_path / "2", **SAMPLES)
    assert (second / "tokenizer.json").is_file()
    cards = [(directory / CARD).read_text(encoding="utf-8") for directory in (first, second)]
    assert cards[0] == cards[1]
    assert f"made from {source.name}:" in cards[1]
    block = "model-block-00001.safetensors"
    ours, theirs = load_file(first / block), load_file(second / block)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_directory_with_something_in_it_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty directory"):
        duquant.quantize(source, "text", output_dir=tmp_path)


def test_a_short_text_is_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="calibration text has"):
        duquant.quantize(source, "text", recipe(), output_dir=tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_sequence_beyond_the_models_positions_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"sequence_length is 5000, but the model has \d+ positions"
    ):
        duquant.quantize(
            source,
            "a text of many words " * 2000,
            recipe(),
            output_dir=tmp_path / "model",
            num_samples=1,
            sequence_length=5000,
        )
    assert not (tmp_path / "model").exists()


def test_an_unknown_dtype_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'int8'; it must be one of float32"):
        duquant.quantize(source, "text", output_dir=tmp_path / "model", dtype="int8")


@pytest.mark.parametrize("name", ["somewhere/else", ""])
def test_a_model_without_a_tokenizer_says_what_to_give(
    name: str, source: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(source)
    model.name_or_path = name
    with pytest.raises(ValueError, match=f"name_or_path is '{name}'"):
        duquant.quantize(model, "text", output_dir=tmp_path / "model")


def test_a_block_that_loses_too_much_is_logged(
    source: Path, text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coarse = recipe(lwc=NO_LWC, weight_bits=2, activation_bits=2)
    duquant.quantize(
        source, text.read_text(encoding="utf-8"), coarse, output_dir=tmp_path / "model", **SAMPLES
    )
    for block in (1, 2):
        assert f"block {block}/2: quantization changes its output by" in caplog.text


def test_a_device_without_room_for_a_block_is_refused_as_the_command_does(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []

    def noted(job: Any) -> Any:
        needed.append(device_phase(job).num_bytes)
        return device_phase(job)

    def run(free: int) -> None:
        monkeypatch.setattr(quantization, "free_device_bytes", lambda device: free)
        words, output = text.read_text(encoding="utf-8"), tmp_path / "model"
        duquant.quantize(source, words, recipe(lwc=NO_LWC), output_dir=output, **SAMPLES)  # type: ignore[arg-type]

    monkeypatch.setattr(placement, "device_phase", noted)
    with pytest.raises(ValueError, match=r"of the memory of cpu \(.+\), .* try dtype bfloat16$"):
        run(0)
    least = min(needed)  # so few samples take less room there than buffers for their copies
    with pytest.raises(ValueError, match="are free there"):
        run(least - 1)
    assert not (tmp_path / "model").exists()
    run(least)
    assert (tmp_path / "model" / CARD).exists()
