"""Whatever stops a fit, within an epoch or at its end: it goes on and ends bit-identical."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.block_events import BlockObserver, BlockRecord
from callbacks.block_progression import BlockProgression
from callbacks.checkpointing import (
    DurableCheckpointIO,
    LastCheckpoint,
    last_checkpoint,
    require_calibrated,
)
from callbacks.run_directory import describe_run
from duquant.config import LWCConfig, RotationConfig
from tests.in_process import (
    LIGHTNING_WARNINGS,
    small_data,
    small_language_model,
    small_trainer,
    write_text,
)
from tests.small_run import stored_tensors, write_small_model

pytestmark = LIGHTNING_WARNINGS
BLOCKS, EPOCHS, STEPS_OF_EPOCH = 2, 2, 2
STEPS = BLOCKS * EPOCHS * STEPS_OF_EPOCH
HOOKS = ("on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end",
         "on_block_entered", "on_block_finished")  # fmt: skip
Way = Callable[[Trainer], None]


def ask(trainer: Trainer) -> None:
    trainer.should_stop = True


def terminate(trainer: Trainer) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt(trainer: Trainer) -> None:
    raise KeyboardInterrupt


def fail(trainer: Trainer) -> None:
    raise OSError(28, "No space left on device")


class StopAt(BlockObserver):
    """Stops in one way, when a hook is called for the n-th time, counting from 0."""

    def __init__(self, way: Way, hook: str, call: int) -> None:
        self.way, self.left = way, call
        setattr(self, hook, self._count)

    def _count(self, trainer: Trainer, *_: Any) -> None:
        if self.left == 0:
            self.way(trainer)
        self.left -= 1


class Runs:
    """Runs of one model and text, each in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.source = write_small_model(directory / "source", blocks=BLOCKS)
        self.text = write_text(directory / "text.txt")
        self.whole = directory / "whole"
        assert self.go(self.whole)

    def go(self, output: Path, *callbacks: Any, **options: Any) -> bool:
        """Begin a run, or go on with it; returns whether it is through."""
        samples = STEPS_OF_EPOCH * 2
        data = small_data(self.source, self.text, num_samples=samples, sequence_length=16)
        model = small_language_model(
            self.source,
            output,
            rotation=RotationConfig(block_size=16, max_steps=1),
            lwc=LWCConfig(epochs=EPOCHS, learning_rate=0.1, batch_size=2),
        )
        model.run_description = describe_run(model, data)
        trainer = small_trainer(
            *callbacks[:1], BlockProgression(), *callbacks[1:], LastCheckpoint(output), **options
        )
        checkpoint = last_checkpoint(output)
        known = checkpoint if checkpoint.is_file() else None
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(model, datamodule=data, ckpt_path=known)
        except (SIGTERMException, SystemExit, OSError):
            return False
        finally:
            signal.signal(signal.SIGINT, handler)  # Lightning ignores it after an interruption
        if not model.is_calibrated:
            assert not model.directory.is_complete, "half-trained and taken for finished"
            with pytest.raises(ValueError, match=r"stopped after . of 2 blocks; --ckpt_path last"):
                require_calibrated(model)
        return model.is_calibrated

    def assert_whole(self, output: Path) -> None:
        """Every tensor and every loss is that of the run that nobody stopped."""
        expected, found = stored_tensors(self.whole), stored_tensors(output)
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        losses = [
            [record.lwc_losses for record in BlockRecord.load_all(run, BLOCKS)]
            for run in (output, self.whole)
        ]
        assert losses[0] == losses[1]

    def assert_goes_on(self, output: Path, is_through: bool) -> None:
        """The continuation, without what stopped it, is exact."""
        assert is_through or self.go(output)
        self.assert_whole(output)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("steps", [1, 2, STEPS - 1, STEPS])
def test_max_steps(runs: Runs, tmp_path: Path, steps: int) -> None:
    is_through = runs.go(tmp_path, max_steps=steps)
    assert is_through == (steps == STEPS)
    runs.assert_goes_on(tmp_path, is_through)


@pytest.mark.parametrize("steps", [3, STEPS - 1])
def test_max_time(runs: Runs, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds pass within one step; the same command then has its time once more."""
    passed = [0.0]
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: passed[0])
    wait = StopAt(lambda _: passed.insert(0, 2.0), "on_train_batch_end", steps - 1)
    assert not runs.go(tmp_path, wait, max_time={"seconds": 1})
    passed.insert(0, 0.0)
    assert runs.go(tmp_path, max_time={"seconds": 1})
    runs.assert_whole(tmp_path)


def calls(hook: str) -> int:
    """How often a hook is called in a whole run."""
    return STEPS if "batch" in hook else BLOCKS if "block" in hook else BLOCKS * EPOCHS


def members() -> list[tuple[Way, str, int]]:
    """Every way at every call of every hook, and of these what a suite has time for."""
    every = [
        (way, hook, call)
        for way in (ask, terminate, interrupt, fail)
        for hook in HOOKS
        for call in range(calls(hook))
    ]
    return every[3::19]


@pytest.mark.parametrize(("way", "hook", "call"), members())
def test_a_stop_from_elsewhere(runs: Runs, tmp_path: Path, way: Way, hook: str, call: int) -> None:
    runs.assert_goes_on(tmp_path, runs.go(tmp_path, StopAt(way, hook, call)))


def test_a_run_may_be_stopped_again_and_again(runs: Runs, tmp_path: Path) -> None:
    """At most an epoch is lost each time, whoever stops it."""
    for turn, way in enumerate(itertools.cycle([ask, terminate])):
        assert turn < 4 * BLOCKS * EPOCHS
        if runs.go(tmp_path, StopAt(way, "on_train_batch_end", turn % 2 + 1)):
            break
    runs.assert_whole(tmp_path)


def test_a_checkpoint_of_the_middle_of_an_epoch_is_refused(tmp_path: Path) -> None:
    """As an earlier release wrote it where max_steps stopped it."""
    progress = {"epoch_loop.batch_progress": {"is_last_batch": False}}
    content = {"duquant_run": {}, "loops": {"fit_loop": progress}}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt was written in the middle of an epoch"):
        DurableCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")


def test_what_slurm_saves_at_any_moment_is_left_out(tmp_path: Path) -> None:
    DurableCheckpointIO().save_checkpoint({"duquant_run": {}}, tmp_path / "hpc_ckpt_1.ckpt")
    assert not list(tmp_path.iterdir())
