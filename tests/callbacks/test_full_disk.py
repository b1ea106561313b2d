"""A disk that takes no more: the command ends with one line that names the file and a remedy."""

import sys
import threading
from pathlib import Path

import pytest

import cli
from callbacks.writer_thread import quiet_writer_threads
from duquant.preflight.duration import Duration
from tests.in_process import LIGHTNING_WARNINGS
from tests.small_run import arguments, write_small_model
from tests.test_write_errors import files_of_at_most

pytestmark = LIGHTNING_WARNINGS
FILES = {
    300: "run.json",
    2_500: "config.yaml",
    20_000: "streams/.block_00000.safetensors.partial",
    50_000: "blocks/outliers_00000.png",
    90_000: "a file in ",
}
"""What is the first file of a run that is larger: TensorBoard does not name its own."""


@pytest.mark.parametrize("num_bytes", FILES)
def test_the_first_file_that_does_not_fit_is_named(
    num_bytes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model, output = write_small_model(tmp_path / "model", blocks=2), tmp_path / "run"
    monkeypatch.setattr("callbacks.preflight.estimate_duration", lambda *_, **__: Duration(1, 1, 1))
    monkeypatch.setattr("callbacks.preflight.picture_seconds", lambda _: 1.0)
    sizes = ["--data.num_samples", "2", "--data.sequence_length", "32"]
    options = arguments(model, output, *sizes, "--model.lwc.epochs", "1")
    monkeypatch.setattr(sys, "argv", ["cli.py", "fit", *options])
    capfd.readouterr()
    with files_of_at_most(num_bytes), pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    err = capfd.readouterr().err
    *before, last = err.splitlines()
    name = FILES[num_bytes]
    place = f"{name}{output}" if name == "a file in " else str(output / name)
    assert last.startswith(f"error: {place} cannot be written: File too large: raise the limit")
    assert "Traceback" not in err
    assert not any(line.startswith("error") for line in before)


def fail_in_thread(name: str, error: Exception) -> None:
    """Let a thread of a class of module ``name`` fail."""

    def fail(self: threading.Thread) -> None:
        raise error

    thread = type("Writer", (threading.Thread,), {"run": fail, "__module__": name})()
    thread.start()
    thread.join()


def test_lost_events_are_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(28, "No space left on device")
    with quiet_writer_threads():
        fail_in_thread("tensorboard.summary.writer", full)
    line = "warning: TensorBoard's last events are lost: No space left on device\n"
    assert capsys.readouterr().err == line


def test_an_error_that_comes_again_is_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(28, "No space left on device")

    def write_events() -> None:
        with quiet_writer_threads():
            fail_in_thread("tensorboard.summary.writer", full)
            raise full  # as the next event does

    with pytest.raises(OSError, match="No space"):
        write_events()
    assert capsys.readouterr().err == ""


def test_other_threads_fail_as_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: seen.append(failure.exc_type))
    with quiet_writer_threads():
        fail_in_thread("tensorboard.summary.writer", ValueError())
        fail_in_thread("elsewhere", OSError())
    assert seen == [ValueError, OSError]
