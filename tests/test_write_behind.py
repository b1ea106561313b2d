"""Jobs are done in order, beside the run; the first that fails ends it."""

import threading

import pytest

from duquant.write_behind import WriteBehind
from duquant.write_errors import CannotWriteError

PATIENCE = 60.0
"""Seconds; only a job that hangs needs them."""


@pytest.fixture
def writer() -> WriteBehind:
    return WriteBehind()


def test_jobs_are_done_in_order_by_one_thread(writer: WriteBehind) -> None:
    done: list[tuple[int, int]] = []
    for number in range(50):
        writer.submit(lambda number=number: done.append((number, threading.get_ident())))
    writer.wait()
    assert [number for number, _ in done] == list(range(50))
    assert len({thread for _, thread in done}) == 1
    assert done[0][1] != threading.get_ident()


def test_who_hands_over_goes_on_and_who_waits_waits(writer: WriteBehind) -> None:
    gate, done = threading.Event(), list[str]()

    def job() -> None:
        assert gate.wait(PATIENCE)
        done.append("written")

    writer.submit(job)
    assert not done
    gate.set()
    writer.wait()
    assert done == ["written"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_what_failed_comes_up_once_and_stops_what_is_behind(
    writer: WriteBehind, error: BaseException
) -> None:
    gate, done = threading.Event(), list[str]()

    def fail() -> None:
        assert gate.wait(PATIENCE)
        raise error

    writer.submit(fail)
    writer.submit(lambda: done.append("behind"))
    gate.set()
    with pytest.raises(type(error)) as raised:
        writer.wait()
    assert raised.value is error
    assert not done
    writer.submit(lambda: done.append("later"))
    writer.wait()
    assert done == ["later"]


def test_the_next_job_is_not_taken_after_one_that_failed(writer: WriteBehind) -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("full")

    writer.submit(fail)
    writer._pending[0].result(PATIENCE)
    with pytest.raises(OSError, match="full"):
        writer.submit(lambda: done.append("behind"))
    writer.wait()
    assert not done


@pytest.mark.parametrize(
    ("exception", "told"),
    [
        (KeyboardInterrupt(), "warning: full\n"),
        (OSError(), "warning: full\n"),
        (CannotWriteError(), ""),
    ],
)
def test_a_run_that_ends_otherwise_waits_and_warns(
    writer: WriteBehind,
    exception: BaseException,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Once, and not where a file is the reason anyway."""

    def fail() -> None:
        raise OSError("full")

    done: list[str] = []
    writer.submit(lambda: done.append("before"))
    writer.submit(fail)
    writer.end(exception)
    writer.end(exception)
    assert done == ["before"]
    assert capsys.readouterr().err == told
