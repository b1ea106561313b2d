"""Results go to standard output and everything else to standard error, as text and as JSON."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback

from duquant.json_output import one_document
from tests.small_run import arguments, run, write_small_model

BLOCKS = 2


class Broken(Callback):
    """A bug, as somebody's callback may have one."""

    def on_fit_start(self, *_: Any) -> None:
        raise RuntimeError("a bug")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("model"), blocks=BLOCKS)


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run that logs to CSV files: its directory, standard output and standard error."""
    output = tmp_path_factory.mktemp("run") / "run"
    ended = run(
        *("fit", *arguments(model, output), "--trainer.logger", "CSVLogger"),
        *("--trainer.logger.save_dir", str(output / "csv")),
    )
    assert ended.returncode == 0, ended.stderr
    return output, ended.stdout, ended.stderr


def as_json(*options: str) -> tuple[dict[str, Any], str]:
    """The one document of a command, and its standard error."""
    ended = run(*options, "--json")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("\n") == 1
    document: dict[str, Any] = json.loads(ended.stdout)
    return document, ended.stderr


def stored(output: Path, name: str = "summary.json") -> dict[str, Any]:
    values: dict[str, Any] = json.loads((output / name).read_text(encoding="utf-8"))
    return values


def test_the_table_alone_is_on_standard_output(finished: tuple[Path, str, str]) -> None:
    output, out, err = finished
    assert out.startswith("Perplexity of ")
    assert out.endswith(f"report: {output / 'report.html'}\n")
    for words in ("blocks in", "finished in", "left", "measuring"):
        assert words in err
        assert words not in out


def test_a_fit_as_one_document(model: Path, tmp_path: Path) -> None:
    document, told = as_json("fit", *arguments(model, tmp_path / "run"))
    assert document == stored(tmp_path / "run")
    assert "Perplexity of " in told
    assert "json" not in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")


def test_later_commands_as_one_document(finished: tuple[Path, str, str]) -> None:
    output = finished[0]
    again, told = as_json("fit", "-c", str(output / "config.yaml"))
    assert again == stored(output)
    assert "already finished" in told
    measured, _ = as_json("validate", "-c", str(output / "config.yaml"))
    assert measured == stored(output, "validation.json")
    reported, told = as_json("report", str(output))
    assert reported["files"] == [str(output / f"report.{kind}") for kind in ("html", "md")]
    assert reported["runs"][0]["summary"] == stored(output)
    assert str(output / "report.html") in told


def test_export_tells_its_progress_elsewhere(
    finished: tuple[Path, str, str], tmp_path: Path
) -> None:
    ended = run("export", "--run", str(finished[0]), "--output_dir", str(tmp_path / "native"))
    assert ended.stdout == f"native model: {tmp_path / 'native'}\n"


def test_a_mistake_leaves_standard_output_empty(model: Path, tmp_path: Path) -> None:
    options = ("--model.weight_bits", "99", "--json")
    refused = run("fit", *arguments(model, tmp_path / "run", *options))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: ")


def test_other_loggers_have_the_numbers_of_blocks(finished: tuple[Path, str, str]) -> None:
    file = finished[0] / "csv" / "lightning_logs" / "version_0" / "metrics.csv"
    with file.open(encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    blocks = [row for row in rows if row["block"]]
    records = stored(finished[0])["blocks"]
    assert [int(float(row["block"])) for row in blocks] == list(range(BLOCKS))
    for row, record in zip(blocks, records, strict=True):
        assert float(row["block_error/relative"]) == pytest.approx(record["relative_error"])
        assert float(row["lwc/last_loss"]) == pytest.approx(record["lwc_loss_last"])
    assert len([row for row in rows if row["lwc/loss"]]) == BLOCKS * 4 * 4
    (measured,) = (row for row in rows if row["perplexity/topics/quantized"])
    expected = stored(finished[0])["perplexity"]["topics"]["quantized"]
    assert float(measured["perplexity/topics/quantized"]) == pytest.approx(expected)
    recipe = file.with_name("hparams.yaml").read_text(encoding="utf-8")
    assert "rotation.block_size: 16" in recipe


def test_a_bug_has_a_plain_traceback(model: Path, tmp_path: Path) -> None:
    """Python's own: it can be pasted into an issue, and shows no values of variables."""
    options = ("--trainer.callbacks+=tests.test_streams.Broken",)
    ended = run("fit", *arguments(model, tmp_path / "run", *options))
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("RuntimeError: a bug")
    assert "Traceback (most recent call last)" in ended.stderr
    assert not set("─│╭╰") & set(ended.stderr.partition("Traceback")[2])


def test_what_others_print_is_not_in_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    with one_document(True) as document:
        print("a note of a library")
        document["name"] = "\x1b[31m模型"
    printed = capsys.readouterr()
    assert printed.err == "a note of a library\n"
    assert json.loads(printed.out) == {"name": "\x1b[31m模型"}
    assert printed.out.strip().isascii()
    with one_document(True):
        pass
    assert capsys.readouterr().out == ""
