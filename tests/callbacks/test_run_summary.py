"""The summary: every number a reader needs, on disk and as a table."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import duquant
from callbacks.block_events import BlockRecord
from callbacks.run_summary import (
    RunSummary,
    describe_recipe,
    print_stored_summary,
    print_summary,
    summarize,
)
from duquant.config import FormatConfig, Recipe, RotationConfig, RoundingConfig
from duquant.data.datamodule import CalibrationDataModule
from duquant.model.block_error import TOLERABLE
from duquant.model.structure import SITES
from tests.in_process import (
    LEARNS_ALL,
    LIGHTNING_WARNINGS,
    LWC,
    NO_LWC,
    FinishedRun,
    small_data,
    small_language_model,
    small_trainer,
)

pytestmark = LIGHTNING_WARNINGS
BLOCKS = 2


@pytest.fixture(scope="module")
def summary(finished_run: FinishedRun) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((finished_run.output / "summary.json").read_text())
    return values


def printed(values: dict[str, Any]) -> str:
    file = io.StringIO()
    print_summary(values, Console(file=file, width=100))
    return file.getvalue()


def test_it_has_every_key(summary: dict[str, Any]) -> None:
    expected = {
        "perplexity", "protocol", "recipe", "versions", "seed", "seconds", "peak_memory_bytes",
        "blocks", "artifact",
    }  # fmt: skip
    assert expected <= summary.keys()


def test_perplexities_by_corpus_and_variant(
    summary: dict[str, Any], finished_run: FinishedRun
) -> None:
    assert set(summary["perplexity"]) == {"topics"}
    values = summary["perplexity"]["topics"]
    assert set(values) == {"full_precision", "round_to_nearest", "quantized"}
    assert values == finished_run.model.perplexities["topics"]
    assert all(math.isfinite(value) for value in values.values())


def test_the_protocol_says_how_it_was_measured(summary: dict[str, Any]) -> None:
    for words in ("non-overlapping windows of 32 tokens", "first 4"):
        assert words in summary["protocol"]


def test_the_recipe_can_be_rebuilt(summary: dict[str, Any], finished_run: FinishedRun) -> None:
    assert Recipe.from_dict(summary["recipe"]) == finished_run.model.recipe
    assert summary["seed"] == 2


def test_versions_and_costs(summary: dict[str, Any]) -> None:
    versions = summary["versions"]
    assert versions["duquant"] == duquant.__version__
    assert {"python", "torch", "lightning", "transformers"} <= versions.keys()
    assert all(versions.values())
    per_block = summary["seconds"]["per_block"]
    assert len(per_block) == BLOCKS
    assert all(seconds > 0 for seconds in per_block)
    assert summary["seconds"]["total"] == pytest.approx(sum(per_block))
    assert summary["peak_memory_bytes"] > 10_000_000, "a Python process with torch"


def test_blocks_tell_their_losses_and_peaks(summary: dict[str, Any]) -> None:
    assert [block["index"] for block in summary["blocks"]] == [0, 1]
    for block in summary["blocks"]:
        assert len(block["lwc_losses"]) == LWC.epochs
        assert block["lwc_loss_first"] == block["lwc_losses"][0]
        assert block["lwc_loss_last"] == block["lwc_losses"][-1]
        assert block["skipped_steps"] == 0
        assert set(block["sites"]) == {site.name for site in SITES}
        for peaks in block["sites"].values():
            assert set(peaks) == {"peak_before", "peak_after"}
            assert all(peak > 0 for peak in peaks.values())
        # These norms have outlier channels; that is what the transform is for.
        entrance = block["sites"]["attention_input"]
        assert entrance["peak_after"] < entrance["peak_before"]


def test_the_artifact_is_where_it_says(summary: dict[str, Any]) -> None:
    assert (Path(summary["artifact"]) / "model.safetensors.index.json").is_file()


def test_the_table_shows_every_variant(summary: dict[str, Any], finished_run: FinishedRun) -> None:
    labels = {
        "full_precision": "full precision (float32)",
        "round_to_nearest": "round to nearest (W4A4)",
        "quantized": "W4A4 DuQuant+LWC",
    }
    lines = printed(summary).splitlines()
    for variant, label in labels.items():
        (row,) = (line for line in lines if label in line)
        assert f"{summary['perplexity']['topics'][variant]:.3f}" in row
    assert any("quantized model:" in line for line in lines)
    for line in lines:
        assert line.rstrip() in finished_run.printed


def test_skipped_steps_are_mentioned(summary: dict[str, Any]) -> None:
    assert "skipped" not in printed(summary)
    blocks = [{**block, "skipped_steps": 3} for block in summary["blocks"]]
    assert "6 LWC steps skipped" in printed({**summary, "blocks": blocks})


def test_several_corpora_stand_side_by_side(summary: dict[str, Any]) -> None:
    values = summary["perplexity"]["topics"]
    other = {variant: 2 * value for variant, value in values.items()}
    text = printed({**summary, "perplexity": {"topics": values, "tales": other}})
    (row,) = (line for line in text.splitlines() if "full precision" in line)
    assert f"{values['full_precision']:.3f}" in row
    assert f"{other['full_precision']:.3f}" in row


def shown_again(output: Path, data: CalibrationDataModule) -> str:
    file = io.StringIO()
    print_stored_summary(output, data, Console(file=file, width=100))
    return file.getvalue()


def test_a_stored_summary_is_shown_again(
    finished_run: FinishedRun, summary: dict[str, Any], tmp_path: Path
) -> None:
    assert shown_again(finished_run.output, finished_run.data) == printed(summary)
    assert shown_again(tmp_path, finished_run.data) == ""


@pytest.mark.parametrize("change", ["corpus", "windows"])
def test_old_results_are_not_taken_for_new_ones(
    finished_run: FinishedRun, summary: dict[str, Any], change: str
) -> None:
    text = str(finished_run.text)
    options: dict[str, Any] = {
        "corpus": {"validation": {"topics": text, "tales": text}},
        "windows": {"validation_windows": 2},
    }
    data = small_data(finished_run.source, finished_run.text, **options[change])
    table, note = shown_again(finished_run.output, data).split(printed(summary))
    assert table == ""
    assert "the run is finished" in note
    assert f"validate -c {finished_run.output / 'config.yaml'} --data.validation" in note
    assert note.count("\n") == 1


def test_validation_alone_keeps_what_the_calibration_cost(
    finished_run: FinishedRun, summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh process measures again; records come from the disk."""
    model = small_language_model(finished_run.source, finished_run.output)
    written: dict[str, Any] = {}
    monkeypatch.setattr(
        "callbacks.run_summary.write_json", lambda path, value: written.update(value)
    )
    callback = RunSummary(Console(file=io.StringIO()))
    data = small_data(finished_run.source, finished_run.text)
    small_trainer(callback).validate(model, data, verbose=False)
    assert json.loads(json.dumps(written["blocks"])) == summary["blocks"]
    assert written["seconds"] == summary["seconds"]
    quantized = summary["perplexity"]["topics"]["quantized"]
    assert written["perplexity"]["topics"]["quantized"] == quantized
    assert "round_to_nearest" not in written["perplexity"]["topics"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "W4A4 DuQuant+LWC"),
        ({"lwc": NO_LWC}, "W4A4 DuQuant"),
        ({"weight_bits": 16}, "W16A4 DuQuant"),
        (LEARNS_ALL, "W4A4 DuQuant+LWC+trained transforms"),
        ({"rounding": RoundingConfig("gptq"), "lwc": NO_LWC}, "W4A4 DuQuant+GPTQ"),
        ({"rotation": RotationConfig(selector="none"), "lwc": NO_LWC}, "W4A4 no rotation"),
    ],
)
def test_a_recipe_in_words(
    finished_run: FinishedRun, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    assert describe_recipe(small_language_model(finished_run.source, tmp_path, **options)) == words


@pytest.mark.parametrize("is_measured", [True, False])
def test_a_baseline_with_dynamic_tensor_scales_says_so(
    finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch, is_measured: bool
) -> None:
    """NVFP4's scale of the whole tensor is calibrated in the recipe, and not in the baseline."""
    model = finished_run.model
    nvfp4 = FormatConfig(format="nvfp4")
    recipe = replace(model.recipe, activations=nvfp4)
    monkeypatch.setattr(model, "recipe", recipe)
    monkeypatch.setattr(model, "report_round_to_nearest", is_measured)
    values = summarize(model, finished_run.data, torch.device("cpu"))
    words = "round to nearest is not calibrated: the tensor scales of its activations"
    assert values["baseline"].startswith(words) is is_measured
    assert (words in " ".join(printed(values).split())) is is_measured


def test_integers_have_no_tensor_scale_to_calibrate(summary: dict[str, Any]) -> None:
    assert summary["baseline"] == ""


def test_records_that_are_not_there_yet_are_left_out(finished_run: FinishedRun) -> None:
    assert len(BlockRecord.load_all(finished_run.output, BLOCKS + 3)) == BLOCKS


def test_every_block_has_its_error(summary: dict[str, Any]) -> None:
    for block in summary["blocks"]:
        assert 0 < block["relative_error"] < 1
        assert (block["complaint"] == "") is (block["relative_error"] <= TOLERABLE)


def test_blocks_that_lose_too_much_are_counted_and_the_worst_is_named(
    summary: dict[str, Any],
) -> None:
    first, second = summary["blocks"]
    harmless = {"relative_error": 0.1, "complaint": ""}
    bad = {"relative_error": 0.8, "complaint": "K is to blame"}
    worse = {"relative_error": None, "complaint": "its output is not finite"}
    words = "blocks lose too much"
    assert words not in printed({**summary, "blocks": [first | harmless, second | harmless]})
    one = printed({**summary, "blocks": [first | harmless, second | bad]})
    assert "1 of 2 blocks lose too much; the worst, block 2: K is to blame" in one
    both = printed({**summary, "blocks": [first | worse, second | bad]})
    assert "2 of 2 blocks lose too much; the worst, block 1: its output is not finite" in both
    for block in (first, second):  # of a version that did not measure this
        del block["relative_error"], block["complaint"]
    assert words not in printed(summary)


def test_no_records_at_all_are_summed_up(
    finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockRecord, "load_all", lambda *_: [])
    summary = summarize(finished_run.model, finished_run.data, torch.device("cpu"))
    assert summary["blocks"] == []
    assert summary["peak_memory_bytes"] > 0
    assert summary["seconds"]["total"] == 0


@pytest.mark.parametrize("victim", ["write_report", "write_json"])
def test_the_numbers_are_shown_even_if_nothing_can_be_written(
    victim: str, finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a run whose disk is full."""

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"callbacks.run_summary.{victim}", fail)
    file = io.StringIO()
    callback = RunSummary(Console(file=file, width=100))
    trainer: Any = SimpleNamespace(
        datamodule=finished_run.data,
        is_global_zero=True,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    with pytest.raises(OSError, match="No space left"):
        callback.on_validation_end(trainer, finished_run.model)
    assert "full precision" in file.getvalue()
    assert "quantized model: " in file.getvalue()
    (finished_run.output / "validation.json").unlink(missing_ok=True)
