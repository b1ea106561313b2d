"""Progress: a bar on a terminal, plain lines elsewhere."""

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning import LightningModule
from rich.console import Console

from callbacks.block_events import BlockRecord
from callbacks.block_progression import BlockProgression
from callbacks.endings import one_line_endings
from callbacks.interruption import Interruption
from callbacks.progress import CalibrationProgress
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
from tests.small_run import write_small_model

pytestmark = LIGHTNING_WARNINGS
BLOCKS = 2
CLOCK = r"(\d+:)?\d+:\d\d"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("source"), blocks=BLOCKS)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def progress(*, is_terminal: bool) -> tuple[CalibrationProgress, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=120, legacy_windows=False)
    return CalibrationProgress(console), file


def plain(text: str) -> str:
    """Without the codes that move a terminal's cursor and choose its colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_every_block_is_one_plain_line(finished_run: FinishedRun) -> None:
    printed = finished_run.printed
    assert "\x1b" not in printed, "no terminal, no codes"
    assert f"calibrating 2 blocks in {finished_run.output}" in printed
    line = (
        r"^block {}/2 finished in \d+\.\d s, LWC loss \S+ -> \S+, error \d+\.\d%; "
        rf"{CLOCK} elapsed, about {CLOCK} left$"
    )
    for block in (1, 2):
        assert len(re.findall(line.format(block), printed, re.MULTILINE)) == 1
    assert re.search(r"block 2/2 .* about 0:00 left", printed)
    assert "measuring perplexity: full precision, round to nearest, quantized" in printed


def test_without_lwc_the_line_has_no_loss(source: Path, text: Path, tmp_path: Path) -> None:
    callback, file = progress(is_terminal=False)
    calibrate(
        small_language_model(source, tmp_path, lwc=NO_LWC), small_data(source, text), callback
    )
    lines = [line for line in file.getvalue().splitlines() if line.startswith("block")]
    assert len(lines) == BLOCKS
    assert not any("LWC" in line for line in lines)
    assert all(re.search(r" s, error \d+\.\d%;", line) for line in lines)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_block_that_loses_too_much_is_named(
    is_terminal: bool, source: Path, text: Path, tmp_path: Path
) -> None:
    callback, file = progress(is_terminal=is_terminal)
    model = small_language_model(source, tmp_path, lwc=NO_LWC, weight_bits=2, activation_bits=2)
    calibrate(model, small_data(source, text), callback)
    records = BlockRecord.load_all(tmp_path, BLOCKS)
    printed = " ".join(plain(file.getvalue()).split())
    for record in records:
        assert record.complaint
        assert f"block {record.index + 1}/{BLOCKS}: {record.complaint}" in printed


def test_a_terminal_has_a_bar_over_the_whole_job(source: Path, text: Path, tmp_path: Path) -> None:
    callback, file = progress(is_terminal=True)
    opened: list[tuple[float, float]] = []

    close = callback._close

    def watch() -> None:
        if callback._bar is not None:
            (task,) = callback._bar.tasks
            opened.append((task.completed, float(task.total or 0)))
            callback._bar.refresh()
        close()

    callback._close = watch  # type: ignore[method-assign]
    calibrate(small_language_model(source, tmp_path), small_data(source, text), callback)
    epochs = BLOCKS * LWC.epochs
    assert opened == [(epochs, epochs)], "one bar, from the first block to the last"
    shown = plain(file.getvalue())
    # Drawn a few times a second, so not every epoch is seen.
    assert re.search(rf"block \d/2, epoch \d/{LWC.epochs}, LWC loss", shown)
    assert "100%" in shown
    assert "ETA" in shown
    assert "finished in" not in shown, "the bar says it"


def test_the_bar_of_a_validation_counts_blocks(finished_run: FinishedRun) -> None:
    callback, file = progress(is_terminal=True)
    totals: list[float] = []
    close = callback._close

    def watch() -> None:
        if callback._bar is not None:
            (task,) = callback._bar.tasks
            totals.append(task.completed)
            assert task.completed == task.total
            callback._bar.refresh()
        close()

    callback._close = watch  # type: ignore[method-assign]
    data = small_data(finished_run.source, finished_run.text, validation_chunk=3)
    model = small_language_model(finished_run.source, finished_run.output)
    small_trainer(callback).validate(model, data, verbose=False)
    assert totals == [2 * BLOCKS], "two chunks through two blocks"
    assert "perplexity, block 2" in plain(file.getvalue())


def test_a_disabled_progress_says_nothing(source: Path, text: Path, tmp_path: Path) -> None:
    callback, file = progress(is_terminal=True)
    callback.disable()
    calibrate(small_language_model(source, tmp_path), small_data(source, text), callback)
    assert file.getvalue() == ""


class Interrupt(BlockProgression):
    """Ctrl-C in the middle of the second block."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *rest)
        if pl_module.block_index == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("is_terminal", [True, False])
def test_an_interruption_closes_the_bar_and_says_how_to_continue(
    source: Path, text: Path, tmp_path: Path, is_terminal: bool
) -> None:
    callback, file = progress(is_terminal=is_terminal)
    trainer = small_trainer(Interrupt(), callback, Interruption(callback.console))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(small_language_model(source, tmp_path), datamodule=small_data(source, text))
    assert callback._bar is None
    assert plain(file.getvalue()).rstrip().endswith("--ckpt_path last continues")


@pytest.mark.parametrize(
    ("subcommand", "words"),
    [
        ("fit", "the same command with --ckpt_path last continues"),
        ("validate", "nothing of a measurement is kept, the same command measures anew"),
    ],
)
def test_how_to_continue_is_that_of_the_subcommand(
    subcommand: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cli.py", subcommand, "--ckpt_path", "last"])
    file = io.StringIO()
    trainer, model = SimpleNamespace(is_global_zero=True), LightningModule()
    callback: Any = Interruption(Console(file=file, width=200))
    callback.on_exception(trainer, model, KeyboardInterrupt())
    assert file.getvalue() == f"interrupted; {words}\n"
    with pytest.raises(SystemExit), one_line_endings():
        raise RuntimeError("[gloo] connection reset")
    said = capsys.readouterr().err
    assert said == f"error: lost the connection to another process of this job; {words}\n"
