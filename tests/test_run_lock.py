"""One run at a time in a directory, and a killed one stands in nobody's way."""

import fcntl
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from duquant.run_lock import LOCK_FILE, RunLock
from tests.forked_process import ForkedProcess

HOLD = """
import sys, time
from pathlib import Path
from duquant.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def hold(directory: Path) -> ForkedProcess:
    """Another process that holds the lock until it is killed."""
    process = ForkedProcess(["-c", HOLD, str(directory)], dict(os.environ))
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    """Naming directory and process; killed without a word, it leaves nothing that is in the way."""
    holder = hold(tmp_path / "run")
    with pytest.raises(ValueError, match="another run is writing into") as refused:
        RunLock(tmp_path / "run").acquire()
    assert str(refused.value).startswith(f"another run is writing into {tmp_path / 'run'} (")
    assert f"process {holder.pid} on " in str(refused.value)
    assert "\n" not in str(refused.value)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert (tmp_path / "run" / LOCK_FILE).is_file()
    with RunLock(tmp_path / "run") as lock:
        lock.acquire()
    assert list((tmp_path / "run").iterdir()) == []


def test_it_may_be_taken_again(tmp_path: Path) -> None:
    for _ in range(3):
        with RunLock(tmp_path) as lock, RunLock(tmp_path) as other:
            lock.acquire()
            lock.acquire()
            with pytest.raises(ValueError, match="wait for its end, or choose another"):
                other.acquire()
        assert not list(tmp_path.iterdir())


def test_the_other_processes_of_a_job_lock_nothing(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run") as lock, RunLock(tmp_path / "run", is_owner=False) as other:
        other.acquire()
        assert not (tmp_path / "run").exists()
        lock.acquire()
        other.acquire()


def test_a_run_that_never_got_so_far_locks_nothing(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_a_file_that_its_holder_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run ends after the second has opened the file: a third must not get another."""
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire()
    flock = fcntl.flock

    def end_first(file: Any, how: int) -> None:
        first.release()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", end_first)
    second.acquire()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="another run"):
        RunLock(tmp_path).acquire()
    second.release()


def test_the_lock_of_a_new_directory_is_left_alone(tmp_path: Path) -> None:
    """The directory was removed and made anew, by another run."""
    old, new = RunLock(tmp_path / "run"), RunLock(tmp_path / "run")
    old.acquire()
    (tmp_path / "run").rename(tmp_path / "gone")
    new.acquire()
    old.release()
    assert (tmp_path / "run" / LOCK_FILE).is_file()
    new.release()


def test_where_nothing_can_be_locked_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunLock(tmp_path) as lock, caplog.at_level(logging.WARNING):
        lock.acquire()
    assert f"{tmp_path} cannot be locked" in caplog.text
