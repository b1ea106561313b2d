"""A calibration without a measurement is a finished run that says so, and can be measured later."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cli
from tests.in_process import LIGHTNING_WARNINGS
from tests.small_run import arguments, write_small_model

pytestmark = LIGHTNING_WARNINGS
Command = Callable[..., tuple[int, str, str]]
SHORT = ["--model.lwc.epochs", "1", "--data.num_samples", "2"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process; returns status and what was printed."""

    def call(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cli.py", *options])
        capfd.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        return status, *capfd.readouterr()

    return call


def test_from_beginning_to_end(tmp_path: Path, command: Command) -> None:
    model, run = write_small_model(tmp_path / "model", blocks=1), tmp_path / "run"
    fit = ("fit", *arguments(model, run, *SHORT, "--data.validation", "{}"))

    status, out, err = command(*fit)
    assert status == 0, err
    assert "nothing to measure" in err
    assert "measuring perplexity" not in err
    assert "Perplexity of" not in out
    assert "perplexity was not measured; calibrated in" in out
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["perplexity"], summary["corpora"], summary["protocols"]) == ({}, {}, {})
    assert set(summary["preflight"]) == {"memory_bytes", "disk_bytes", "calibration_seconds"}
    assert "It was not measured" in (run / "model" / "README.md").read_text()
    for name in ("report.html", "report.md"):
        assert "perplexity was not measured" in (run / name).read_text()
    assert not (run / "streams").exists()

    status, out, err = command(*fit)
    assert (status, err) == (0, "")
    assert "is already finished" in out
    assert "perplexity was not measured" in out

    status, out, err = command("validate", "-c", str(run / "config.yaml"))
    assert (status, err.count("\n")) == (2, 1)
    assert "nothing to measure: name corpora, --data.validation '{mine: my_test.txt}'" in err

    later = "{topics: python_topics}"
    status, out, err = command(
        "validate", "-c", str(run / "config.yaml"), "--data.validation", later
    )
    assert status == 0, err
    measured = json.loads((run / "validation.json").read_text())["perplexity"]["topics"]
    assert json.loads((run / "summary.json").read_text()) == summary
    quantized = f"{measured['quantized']:.3f}"
    assert quantized in out
    assert quantized in (run / "model" / "README.md").read_text()
    for name in ("report.html", "report.md"):
        assert quantized in (run / name).read_text()
        assert "not measured" not in (run / name).read_text()
