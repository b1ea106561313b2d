"""Whatever ends a command, it is one line and a status."""

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.endings import fail, one_line_endings
from duquant.interruption import FIT_CONTINUES, ToldInterrupt
from duquant.write_errors import CannotWriteError


def made_of_an_interrupt() -> SystemExit:
    """What Lightning makes of Control-C."""
    left = SystemExit(1)
    left.__context__ = KeyboardInterrupt()
    return left


ENDINGS: dict[str, tuple[BaseException, int, str]] = {
    "mistake": (ValueError("bits is 1;\n  it must be 2"), 2, "error: bits is 1; it must be 2\n"),
    "file": (FileNotFoundError(2, "No such file", "a"), 2, "error: [Errno 2] No such file: 'a'\n"),
    "disk": (CannotWriteError("a is full"), 2, "error: a is full\n"),
    "Lightning": (MisconfigurationException("no GPU"), 2, "error: no GPU\n"),
    "peer": (
        RuntimeError("gloo: Connection reset"),
        2,
        f"error: lost the connection to another process of this job; {FIT_CONTINUES}\n",
    ),
    "Control-C": (KeyboardInterrupt(), 130, "interrupted; the same command continues\n"),
    "Control-C, told": (ToldInterrupt(), 130, ""),
    "Control-C, Lightning": (made_of_an_interrupt(), 130, ""),
    "SIGTERM": (SIGTERMException(), 143, ""),
    "help": (SystemExit(0), 0, ""),
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_one_line_and_a_status(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, status, line = ENDINGS[kind]
    with pytest.raises(SystemExit) as stopped, one_line_endings():
        raise error
    assert (stopped.value.code, capsys.readouterr().err) == (status, line)


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="ours"), one_line_endings():
        raise RuntimeError("ours")


def test_a_failure_within_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line_endings():
        fail("first")
    assert capsys.readouterr().err == "error: first\n"
