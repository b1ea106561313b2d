"""Flipped bits in what a run resumes from: refused by name, or without any effect."""

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from safetensors.torch import load_file, save_file

from callbacks.block_events import BlockRecord
from callbacks.block_progression import BlockProgression
from callbacks.checkpointing import DurableCheckpointIO, LastCheckpoint, last_checkpoint
from callbacks.preflight import Preflight
from callbacks.preflight_file import compare_with_estimate
from callbacks.run_directory import describe_run
from duquant import checksum
from duquant.atomic_files import write_json
from duquant.data.stream_shares import StreamShares
from duquant.model.checkpoint import read_json
from duquant.modules.language_model import LanguageModel
from tests.in_process import (
    LIGHTNING_WARNINGS,
    small_data,
    small_language_model,
    small_trainer,
    without_pictures,
    write_text,
)
from tests.small_run import write_small_model

pytestmark = LIGHTNING_WARNINGS
Read = Callable[[], Any]
HEAD = 600
"""Bytes of headers and trailers, which are tried as often as all the rest."""


class Stop(Callback):
    """Ends a fit after its first block."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.should_stop = pl_module.block_index == 1


@dataclass
class Interrupted:
    """A run after its first of two blocks.

    Attributes:
        output: the run directory.
        model: the language model.
        streams: what reads its streams.
    """

    output: Path
    model: LanguageModel
    streams: StreamShares

    def readers(self) -> dict[str, Read]:
        """How every file is read when the run goes on."""
        directory, decoder = self.model.directory, self.model.decoder
        return {
            "streams/block_00001.safetensors": self.read_streams,
            "checkpoints/last.ckpt": lambda: DurableCheckpointIO().load_checkpoint(
                last_checkpoint(self.output)
            ),
            "model/model-block-00000.safetensors": lambda: directory.require_block(0, decoder),
            "blocks/block_00000.json": lambda: BlockRecord.load_all(self.output, 1),
            "preflight.json": lambda: compare_with_estimate(
                self.output, memory=1, calibration=1.0, validation=1.0
            ),
        }

    def read_streams(self) -> list[torch.Tensor]:
        streams = self.streams.load(1)
        return [streams.full_precision[:], streams.quantized[:], streams.calibration_mean[:]]


FILES = (
    "streams/block_00001.safetensors", "checkpoints/last.ckpt",
    "model/model-block-00000.safetensors", "blocks/block_00000.json", "preflight.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    directory = tmp_path_factory.mktemp("interrupted")
    source = write_small_model(directory / "source", blocks=2)
    text, output = write_text(directory / "text.txt"), directory / "run"
    model, data = small_language_model(source, output), small_data(source, text)
    model.run_description = describe_run(model, data)
    progression = BlockProgression()
    callbacks = [Preflight(output), progression, Stop(), LastCheckpoint(output)]
    with pytest.MonkeyPatch.context() as patched:
        without_pictures(patched)
        small_trainer(*callbacks).fit(model, datamodule=data)
    return Interrupted(output, model, progression.files.streams)


def damaged(content: bytes, number: int) -> Iterator[bytes]:
    """Copies of a file with one bit flipped, or with a stretch of noise."""
    generator = random.Random(0)
    for turn in range(number):
        spoiled = bytearray(content)
        ends = [generator.randrange(len(content)), generator.randrange(min(HEAD, len(content)))]
        place = (ends[0], ends[1], len(content) - 1 - ends[1])[turn % 3]
        if turn % 5:
            spoiled[place] ^= 1 << generator.randrange(8)
        else:
            spoiled[place : place + 64] = generator.randbytes(len(spoiled[place : place + 64]))
        if spoiled != content:
            yield bytes(spoiled)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_or_harmless(interrupted: Interrupted, name: str) -> None:
    read, file = interrupted.readers()[name], interrupted.output / name
    content, expected = file.read_bytes(), read()
    complaints: list[str] = []
    harmless = 0
    try:
        for spoiled in damaged(content, 60 if "model-block" in name else 250):
            file.write_bytes(spoiled)
            try:
                found = read()
            except ValueError as error:
                complaints.append(str(error))
            else:
                harmless += 1
                assert same(found, expected), "read, and other than it was"
    finally:
        file.write_bytes(content)
    assert all(str(file) in complaint for complaint in complaints)
    assert len(complaints) >= 50
    assert harmless <= (10 if file.suffix == ".json" else 0)


@pytest.mark.parametrize("name", FILES)
def test_the_remedy_is_named(interrupted: Interrupted, name: str) -> None:
    if "model-block" in name:
        return  # whoever reads it adds the remedy: tests/callbacks/test_block_progression.py
    file = interrupted.output / name
    content = file.read_bytes()
    for spoiled in (content[: len(content) // 2], content[:-40] + b"0" * 40):
        file.write_bytes(spoiled)
        with pytest.raises(ValueError, match=r"start anew in another --output_dir|delete it: "):
            interrupted.readers()[name]()
    file.write_bytes(content)


def test_files_of_an_earlier_release_are_read_unchecked(
    interrupted: Interrupted, caplog: pytest.LogCaptureFixture
) -> None:
    """Which is said in one line, however many there are."""
    readers = interrupted.readers()
    expected = {name: read() for name, read in readers.items()}
    kept = {name: (interrupted.output / name).read_bytes() for name in FILES}
    stream, checkpoint, _, record, estimate = (interrupted.output / name for name in FILES)
    save_file(load_file(stream), stream, {"format": "pt"})
    torch.save(torch.load(checkpoint, weights_only=True), checkpoint)
    for file in (record, estimate):
        values = checksum.check_values(read_json(file), file)
        write_json(file, values)
    checksum.say_unchecked.cache_clear()
    with caplog.at_level(logging.WARNING):
        for name, read in readers.items():
            assert same(read(), expected[name]), name
    assert caplog.text.count("carry no checksums") == 1
    for name, content in kept.items():
        (interrupted.output / name).write_bytes(content)
