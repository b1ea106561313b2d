"""Who reports a failure; jobs that really fail are in ``tests/test_many_processes.py``."""

import signal
import subprocess
import sys
import time

import pytest
from torch import distributed

from callbacks.joint_failure import claim_the_word, is_lost_connection, watch


def test_without_other_processes_everyone_may_speak() -> None:
    assert claim_the_word()
    assert claim_the_word("another")


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (distributed.DistBackendError("NCCL error"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
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
