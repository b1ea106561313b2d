"""Who reports a failure; jobs that really fail are in ``tests/test_many_processes.py``."""

import queue
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
from torch import distributed

from callbacks import joint_failure
from callbacks.joint_failure import (
    claim_the_word,
    end_with_the_others,
    is_lost_connection,
    speak_once,
    watch,
)


def test_without_other_processes_everyone_may_speak() -> None:
    assert claim_the_word()
    assert claim_the_word("another")


def test_who_has_the_word_is_heard_before_the_process_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread reports a killed process; meanwhile the main thread has lost its connection."""
    said: list[str] = []
    has_the_word = threading.Event()

    def claim(speaker: str | None) -> bool:
        is_first = not has_the_word.is_set()
        has_the_word.set()
        return is_first

    def complain(message: str) -> None:
        time.sleep(0.5)
        said.append(message)

    monkeypatch.setattr(joint_failure, "claim_the_word", claim)
    monkeypatch.setattr(joint_failure, "complain", complain)
    thread = threading.Thread(target=speak_once, args=("process 1 was killed",))
    thread.start()
    has_the_word.wait()
    speak_once("lost the connection")
    assert said == ["process 1 was killed"]
    thread.join()


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (distributed.DistBackendError("NCCL error"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1."), True),
        (RuntimeError("Distributed package doesn't have NCCL built in"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("num_samples is 0"), False),
    ],
)
def test_a_lost_connection_is_told_from_an_error(error: Exception, is_lost: bool) -> None:
    assert is_lost_connection(error) == is_lost


def test_only_a_killed_process_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    """One that left by itself has said why."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    leaver = subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])
    watch([leaver, sleeper])
    leaver.wait()
    sleeper.send_signal(signal.SIGKILL)
    said, patience = "", time.monotonic() + 30
    while "\n" not in said and time.monotonic() < patience:
        time.sleep(0.01)
        said += capfd.readouterr().err
    assert said == (
        "error: process 2 was killed (signal 9); the same command with --ckpt_path last continues\n"
    )


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> "distributed.TCPStore":  # type: ignore[name-defined]
    """A job's store, and processes that look at it more often."""
    monkeypatch.setattr(joint_failure, "PATIENCE", timedelta(seconds=0.2))
    held = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(held.port))
    return held


def test_who_waits_leaves_behind_a_process_that_failed(
    store: "distributed.TCPStore",  # type: ignore[name-defined]
    capfd: pytest.CaptureFixture[str],
) -> None:
    left: queue.Queue[int] = queue.Queue()
    end_with_the_others(0, 1, left.put)
    with pytest.raises(queue.Empty):
        left.get(timeout=1)
    store.set(joint_failure.KEY, "process 1")
    assert left.get(timeout=30) == 2
    assert capfd.readouterr().err == "", "process 1 has said why"


def test_who_waits_leaves_and_says_so_if_process_0_was_killed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(joint_failure, "PATIENCE", timedelta(seconds=0.2))
    script = (
        "import time, torch; held = torch.distributed.TCPStore('127.0.0.1', 0, is_master=True, "
        "wait_for_workers=False); print(held.port, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as master:
        assert master.stdout is not None
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", master.stdout.readline().decode().strip())
        left: queue.Queue[int] = queue.Queue()
        end_with_the_others(0, 1, left.put)
        time.sleep(1)
        master.kill()
    assert left.get(timeout=60) == 2
    assert "lost the connection to another process of this job" in capfd.readouterr().err


def test_a_job_that_is_over_is_watched_no_more(
    store: "distributed.TCPStore",  # type: ignore[name-defined]
) -> None:
    left: queue.Queue[int] = queue.Queue()
    end_with_the_others(0, 1, left.put).set()
    store.set(joint_failure.KEY, "process 1")
    with pytest.raises(queue.Empty):
        left.get(timeout=2)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed within two seconds."""
    monkeypatch.setattr(joint_failure, "SILENCE", 10)


def test_one_that_counts_no_more_is_noticed_by_one_and_left_behind_by_all(
    store: "distributed.TCPStore",  # type: ignore[name-defined]
    impatient: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Process 2 of 3 was on a machine that lost power."""
    store.set(joint_failure.ALIVE.format(2), "7")
    left: queue.Queue[int] = queue.Queue()
    for rank in (0, 1):
        end_with_the_others(rank, 3, left.put)
    assert [left.get(timeout=60) for _ in range(2)] == [2, 2]
    assert store.get(joint_failure.KEY) == b"process 1"
    assert capfd.readouterr().err == (
        "error: lost the connection to another process of this job; "
        "the same command with --ckpt_path last continues\n"
    )


def test_who_counts_or_has_left_is_not_missed(
    store: "distributed.TCPStore",  # type: ignore[name-defined]
    impatient: None,
) -> None:
    left: queue.Queue[int] = queue.Queue()
    first, second = (end_with_the_others(rank, 2, left.put) for rank in (0, 1))
    with pytest.raises(queue.Empty):
        left.get(timeout=4)
    second.set()
    with pytest.raises(queue.Empty):
        left.get(timeout=4)
    assert store.get(joint_failure.ALIVE.format(1)) == joint_failure.LEFT.encode()
    first.set()
