"""Control-C ends every command with one line and status 130, whenever it comes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cli
from tests.assets import REPOSITORY
from tests.small_run import arguments, write_small_model

IGNORING = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from tests.interrupts import let_children_be_interrupted
if sys.argv[1] == "helped":
    let_children_be_interrupted()
child = subprocess.Popen([sys.executable, "-c", sys.argv[2]], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
child.send_signal(signal.SIGINT)
child.communicate()
signal.raise_signal(signal.SIGINT)
print(child.returncode)
"""
CHILD = """
import time
print("ready", flush=True)
time.sleep(0.5)
"""


@pytest.mark.parametrize(("help_", "status"), [("helped", -signal.SIGINT), ("left alone", 0)])
def test_children_of_a_process_that_ignores_control_c(help_: str, status: int) -> None:
    """They are interrupted, and it is not; ``tests/conftest.py`` does so for every test."""
    parent = subprocess.run(
        [sys.executable, "-c", IGNORING, help_, CHILD],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert parent.stdout.split() == [str(status)]


def test_no_test_passes_an_ignored_signal_on() -> None:
    assert signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, signal.SIG_DFL)


@pytest.mark.parametrize("imports", [1, 1500])
def test_control_c_while_modules_are_imported(imports: int) -> None:
    """After some of what cli.py imports; ``-X importtime`` tells how far it is."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", str(REPOSITORY / "cli.py"), "fit", "--help"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert process.stderr is not None
    lines = iter(process.stderr)
    next(line for line in lines if "callbacks.early_interrupt" in line)
    for _ in range(imports):
        next(lines)
    process.send_signal(signal.SIGINT)
    said = [line for line in lines if not line.startswith("import time:")]
    process.stderr.close()
    assert (process.wait(), said) == (130, ["interrupted; nothing was begun\n"])


def test_control_c_before_the_fit_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the text is tokenized: nobody reports progress yet."""
    model = write_small_model(tmp_path / "model", blocks=1)

    def interrupt(_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    capsys.readouterr()
    monkeypatch.setattr("duquant.data.datamodule.load_tokenizer", interrupt)
    monkeypatch.setattr(sys, "argv", ["cli.py", "fit", *arguments(model, tmp_path / "run")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command continues\n"
    assert not (tmp_path / "run").exists()
