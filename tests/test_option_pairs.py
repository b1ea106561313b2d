"""Every pair of a recipe's options through everything that a recipe must hold up in."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicCache

import duquant
from callbacks.block_progression import BlockProgression
from callbacks.checkpointing import LastCheckpoint, last_checkpoint
from callbacks.run_directory import describe_run
from duquant.config import Recipe
from duquant.formats.integer import Integer
from duquant.formats.unquantized import Unquantized
from duquant.json_files import read_json
from tests.callbacks.test_block_progression import assert_same_tensors
from tests.callbacks.test_learned_transforms import StopAfter
from tests.in_process import (
    LIGHTNING_WARNINGS,
    FinishedRun,
    calibrate,
    finish_run,
    small_data,
    small_language_model,
    small_trainer,
    without_pictures,
)
from tests.option_pairs import OPTIONS, Choice, covering_choices, recipe_options

pytestmark = LIGHTNING_WARNINGS
ROWS = covering_choices(OPTIONS)
IDS = torch.arange(24, device="cpu").view(2, 12) * 17 % 1000


def test_every_pair_is_in_some_row() -> None:
    for one, other in itertools.combinations(OPTIONS, 2):
        for pair in itertools.product(OPTIONS[one], OPTIONS[other]):
            assert any(dict(row)[one] == pair[0] and dict(row)[other] == pair[1] for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ", ".join(value for _, value in row))
def test_a_recipe_holds_up(
    row: tuple[Choice, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run to its end; the same stopped inside and resumed; in a loop; loaded in every way.

    Pictures are drawn alike whatever the recipe is: ``tests/callbacks/test_outlier_picture.py``.
    """
    without_pictures(monkeypatch)
    options = recipe_options(row)
    run = finish_run(tmp_path, **options)
    _is_reported(run)
    _resumes(run, tmp_path / "stopped", ROWS.index(row))
    data = run.data
    directory = duquant.quantize(
        run.source,
        run.text.read_text(encoding="utf-8"),
        Recipe(**options),
        output_dir=tmp_path / "loop" / "model",
        num_samples=data.num_samples,
        sequence_length=data.sequence_length,
    )
    assert_same_tensors(directory.parent, run.output)
    _runs_everywhere(directory, run.model.recipe)


def _is_reported(run: FinishedRun) -> None:
    """Preflight, progress, summary and report know what happened."""
    recipe, summary = run.model.recipe, read_json(run.output / "summary.json", dict)
    assert summary["recipe"] == recipe.to_dict()
    assert all(block["relative_error"] > 0 for block in summary["blocks"])
    assert summary["perplexity"]["topics"]["quantized"] > 1
    assert {"calibration_seconds", "memory_bytes"} <= summary["preflight"].keys()
    assert all(known["estimate"] > 0 for known in summary["preflight"].values())
    assert ("+GPTQ" in summary["recipe_in_words"]) == (recipe.rounding.method == "gptq")
    assert [len(turn["losses"]) for turn in summary["distillation"]] == [
        1
    ] * recipe.distillation.epochs
    report = (run.output / "report.md").read_text(encoding="utf-8")
    assert f"| rounding.method | {recipe.rounding.method} |" in report


def _resumes(run: FinishedRun, output: Path, turn: int) -> None:
    """Stopped after an epoch that depends on the row, it ends in the same tensors."""
    options = {name: getattr(run.model.recipe, name) for name in run.model.recipe.to_dict()}
    epochs = 2 * max(1, run.model.recipe.lwc.epochs) + run.model.recipe.distillation.epochs
    stop, data = 1 + turn % (epochs - 1), small_data(run.source, run.text)
    stopped = small_language_model(run.source, output, **options)
    calibrate(stopped, data, StopAfter(stop), LastCheckpoint(output))
    assert not stopped.is_calibrated
    model = small_language_model(run.source, output, **options)
    model.run_description = describe_run(model, data)
    trainer = small_trainer(BlockProgression(), LastCheckpoint(output))
    trainer.fit(model, datamodule=data, ckpt_path=last_checkpoint(output))
    assert model.is_calibrated
    assert_same_tensors(output, run.output)


def _runs_everywhere(directory: Path, recipe: Recipe) -> None:
    """By reference and in integers, with the ordinary cache and with the packed one."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        duquant.set_execution(model, "reference")
        reference = model(IDS).logits
        assert reference.isfinite().all()
        if isinstance(recipe.formats.activations, Integer):
            duquant.set_execution(model, "integer")
            integers = model(IDS).logits
            assert not torch.equal(integers, reference), "they are other float sums"
            torch.testing.assert_close(integers, reference, rtol=0.05, atol=0.05)
        else:
            with pytest.raises(ValueError, match="are not both integers"):
                duquant.set_execution(model, "integer")
            duquant.set_execution(model, "auto")
    if isinstance(recipe.formats.keys, Unquantized):
        with pytest.raises(ValueError, match="K or V is not quantized"):
            duquant.PackedCache(model)
        return
    packed, plain = (_continued(model, c) for c in (duquant.PackedCache(model), DynamicCache()))
    assert torch.equal(packed, plain)


@torch.no_grad()
def _continued(model: Any, cache: Cache) -> torch.Tensor:
    """Logits of the last tokens behind what the cache holds of the first."""
    model(IDS[:, :8], past_key_values=cache)
    logits: torch.Tensor = model(IDS[:, 8:], past_key_values=cache).logits
    return logits
