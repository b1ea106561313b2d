"""A run that is killed at any moment continues and ends bit-identical."""

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests import small_run
from tests.forked_process import ForkedProcess
from tests.in_process import write_text
from tests.small_run import (
    run,
    run_anew,
    start,
    stored_tensors,
    write_small_model,
)

KILLS = 4
LONGEST_LIFE = 2.5
"""Seconds after a process begins to calibrate within which it is killed; an uninterrupted run takes
about as long, so kills fall into every phase: entering, training, finishing, writing."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_text(directory / "text.txt")
    return write_small_model(directory / "model", blocks=4)


def arguments(model: Path, output: Path, *extra: str) -> list[str]:
    """Options of a small run on the text beside the model."""
    text = model.parent / "text.txt"
    texts = ["--data.calibration", str(text), "--data.validation", f"{{topics: {text}}}"]
    return small_run.arguments(model, output, *texts, *extra)


@pytest.fixture(scope="module")
def uninterrupted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter of its own, the only one: others hash strings in another order."""
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    finished = run_anew("fit", *arguments(model, output))
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("Perplexity of") == 1
    return output


def kill_while_calibrating(options: list[str], after: float) -> None:
    """Start a fit and SIGKILL it ``after`` seconds into the calibration."""
    process = start("fit", *options)
    wait_for(process, "calibrating", "continuing")
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_for(process: ForkedProcess, *beginnings: str) -> None:
    """Read standard error to the first line that begins so; what the preflight says comes first."""
    for line in process.stderr:
        if line.startswith(beginnings):
            return


def assert_same_tensors(output: Path, expected: Path) -> None:
    ours, theirs = stored_tensors(output), stored_tensors(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(("stream_memory_gb", "kills"), [("null", KILLS), ("0", KILLS // 2)])
def test_killed_at_random_moments_ends_bit_identical(
    model: Path, uninterrupted: Path, tmp_path: Path, stream_memory_gb: str, kills: int
) -> None:
    """With streams in memory and on disk; the uninterrupted run kept them in memory."""
    output = tmp_path / "run"
    moments = random.Random(0)
    place = ["--data.stream_memory_gb", stream_memory_gb]
    for kill in range(kills):
        if (output / "model" / "model.safetensors.index.json").exists():
            assert_same_tensors(output, uninterrupted)
            output = tmp_path / f"run_{kill}"
        options = arguments(model, output, *place, "--ckpt_path", "last")
        kill_while_calibrating(options, moments.uniform(0, LONGEST_LIFE))
    finished = run("fit", *arguments(model, output, *place, "--ckpt_path", "last"))
    assert finished.returncode == 0, finished.stderr
    assert_same_tensors(output, uninterrupted)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_the_keyboard_or_a_scheduler_says_how_to_continue(
    model: Path, uninterrupted: Path, tmp_path: Path, how: signal.Signals
) -> None:
    output = tmp_path / "run"
    process = start("fit", *arguments(model, output))
    wait_for(process, "block 1/")
    process.send_signal(how)
    _, err = process.communicate()
    assert process.returncode == 128 + how
    assert err.splitlines()[-1] == "interrupted; the same command with --ckpt_path last continues"
    assert "Traceback" not in err
    assert run("fit", *arguments(model, output, "--ckpt_path", "last")).returncode == 0
    assert_same_tensors(output, uninterrupted)


def test_leftovers_of_a_killed_writer_do_not_disturb(
    model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    options = arguments(model, output)
    kill_while_calibrating(options, 0.3)
    leftover = output / "streams" / ".block_00001.safetensors.partial"
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.write_bytes(b"half a file")
    finished = run("fit", *options)
    assert finished.returncode == 0, finished.stderr
    assert_same_tensors(output, uninterrupted)


def test_finished_run_is_only_reported(model: Path, uninterrupted: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in uninterrupted.rglob("*.safetensors")}
    again = run("fit", *arguments(model, uninterrupted, "--ckpt_path", "last"))
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stdout
    assert "full precision" in again.stdout
    after = {file: file.stat().st_mtime_ns for file in uninterrupted.rglob("*.safetensors")}
    assert before == after


def test_other_recipe_is_refused_naming_the_difference(model: Path, uninterrupted: Path) -> None:
    options = arguments(model, uninterrupted, "--ckpt_path", "last", "--model.weight_bits", "3")
    refused = run("fit", *options)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "recipe.weight_bits was 4, now 3" in refused.stderr


def test_checkpoint_of_another_run_is_refused(
    model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    foreign = uninterrupted / "checkpoints" / "last.ckpt"
    options = ["--ckpt_path", str(foreign), "--data.seed", "7"]
    refused = run("fit", *arguments(model, tmp_path / "run", *options))
    assert refused.returncode == 2
    assert "data.seed was 2, now 7" in refused.stderr


@pytest.mark.parametrize("victims", ["checkpoints/last.ckpt", "streams/block_*.safetensors"])
def test_damaged_file_is_refused_by_name(model: Path, tmp_path: Path, victims: str) -> None:
    output = tmp_path / "run"
    options = arguments(model, output, "--model.lwc.epochs", "30")
    process = start("fit", *options)
    while not (output / "blocks" / "block_00000.json").is_file():
        assert process.poll() is None, "the run ended before it could be damaged"
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for file in output.glob(victims):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused = run("fit", *options, "--ckpt_path", "last")
    assert refused.returncode == 2
    assert victims.partition("*")[0] in refused.stderr
    assert "damaged" in refused.stderr
