"""The look at a GPU, rehearsed on the CPU: every check runs with today's names and is green."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu_check
from tests.benchmarks.gpu.bench import CHECKS, Bench, not_applicable
from tests.in_process import LIGHTNING_WARNINGS

pytestmark = LIGHTNING_WARNINGS


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(torch.device("cpu"), True, tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("name", gpu_check.ORDER)
def test_every_check_is_green_on_the_cpu(name: str, bench: Bench) -> None:
    line = gpu_check.run_check(name, bench)
    assert line["ok"], line
    json.dumps(line)


def test_a_failed_check_is_a_line_and_a_status(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def breaks(_: Bench) -> dict[str, object]:
        raise RuntimeError("no such device")

    def lies(_: Bench) -> dict[str, object]:
        return {"ok": False, "apart": 1.0}

    for check in (breaks, lies):
        monkeypatch.setitem(CHECKS, check.__name__, (check, 1.0))

    def lacks(_: Bench) -> dict[str, object]:
        return not_applicable("no such kernel")

    monkeypatch.setitem(CHECKS, "lacks", (lacks, 1.0))
    names = ("environment", "breaks", "lies", "lacks")
    lines = [gpu_check.run_check(name, bench) for name in names]
    capsys.readouterr()
    assert gpu_check.report(iter(lines), tmp_path / "lines.jsonl") == 1
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "lines.jsonl").read_text()
    last = json.loads(printed.splitlines()[-1])
    assert last["failed"] == ["breaks", "lies"]
    assert last["not_applicable"] == ["lacks"]
    assert "no such device" in printed
    assert gpu_check.report(iter(lines[:1]), None) == 0


@pytest.mark.parametrize(
    ("ending", "error"), [("import os; os._exit(3)", "ended with 3"), ("input()", "more than")]
)
def test_a_process_that_ends_or_hangs_is_a_failed_line(
    ending: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check behind it runs in the next process."""
    program = tmp_path / "python"
    program.write_text(
        "#!/bin/sh\n"
        "for last do :; done\n"  # the names, joined by commas, come last
        'case "$last" in\n'
        '  first*) echo \'{"begins": "first"}\';'
        ' case "$ENDING" in *input*) sleep 60;; *) exit 3;; esac;;\n'
        '  *) echo \'{"begins": "second"}\'; echo \'{"check": "second", "ok": true}\';;\n'
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    monkeypatch.setenv("ENDING", ending)
    for name in ("first", "second"):
        monkeypatch.setitem(CHECKS, name, (lambda _: {}, 1.0))
    options = argparse.Namespace(device="cpu", small=False, patience=0.5)
    lines: Iterator[dict[str, object]] = gpu_check.lines_of(["first", "second"], options, tmp_path)
    first, second = lines
    assert (first["check"], first["ok"]) == ("first", False)
    assert error in str(first["error"])
    assert second == {"check": "second", "ok": True}


def test_an_unknown_check_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(["--checks", "nothing"])
    assert ended.value.code == 2
    assert "there is no check nothing; there are environment" in capsys.readouterr().err
