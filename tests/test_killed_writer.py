"""A run that is killed while files are still being written behind it continues bit-identical."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests import slow_writer
from tests.forked_process import run_forked
from tests.in_process import write_text
from tests.small_run import arguments, one_thread, run, write_small_model

BLOCKS = 2
FEW = (6, 8, 16)
"""Moments that a suite has time for: before block 0 is there, before the streams behind it are, and
before the checkpoint that says so; the environment variable EVERY_WRITE=1 tries all."""
NEVER = 1_000_000


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All that runs have in common but their directory."""
    directory = tmp_path_factory.mktemp("inputs")
    text = write_text(directory / "text.txt")
    model = write_small_model(directory / "model", blocks=BLOCKS)
    texts = ["--data.calibration", str(text), "--data.validation", "{}"]
    return arguments(model, Path(), *texts, "--model.lwc.epochs", "2")


def fit_until(moment: int, options: list[str], output: Path) -> tuple[int, str]:
    """Status and standard error of a fit whose writer is killed at a moment of its."""
    command = [str(slow_writer.__file__), str(moment), "fit", *options]
    ended = run_forked([*command, "--output_dir", str(output)], one_thread())
    return ended.returncode, ended.stderr


@pytest.fixture(scope="module")
def undisturbed(
    options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], int]:
    """What an uninterrupted run stores, and how many moments there are to be killed at."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    status, err = fit_until(NEVER, options, output)
    assert status == 0, err
    found = re.search(r"^moments: (\d+)$", err, re.MULTILINE)
    assert found
    return stored(output), int(found[1])


def stored(output: Path) -> dict[str, bytes]:
    """Every byte of the model; of the blocks' records the losses, and which pictures there are."""
    model = {file.name: file.read_bytes() for file in sorted((output / "model").iterdir())}
    model["README.md"] = b""  # names the seconds it took
    for file in sorted((output / "blocks").iterdir()):
        is_picture = file.suffix == ".png"
        losses = None if is_picture else json.loads(file.read_text("utf-8"))["lwc_losses"]
        model[file.name] = b"a picture" if is_picture else str(losses).encode()
    return model


def test_a_run_whose_writer_is_killed_ends_as_if_it_were_not(
    options: list[str], undisturbed: tuple[dict[str, bytes], int], tmp_path: Path
) -> None:
    expected, moments = undisturbed
    # Of every block: its file, streams, record, the directory's size, a picture, two checkpoints.
    assert moments == 2 * (BLOCKS * 7)
    for moment in range(moments) if os.environ.get("EVERY_WRITE") == "1" else FEW:
        output = tmp_path / f"run_{moment}"
        status, err = fit_until(moment, options, output)
        assert status == -signal.SIGKILL, (moment, err)
        assert not (output / "summary.json").exists()
        finished = run("fit", *options, "--output_dir", str(output))
        assert finished.returncode == 0, (moment, finished.stderr)
        assert stored(output) == expected, moment
