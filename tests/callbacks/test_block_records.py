"""What a block's record says of tokens and sites: right, and the same behind an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from callbacks.block_events import BlockRecord
from callbacks.block_progression import BlockProgression
from callbacks.checkpointing import LastCheckpoint, last_checkpoint
from duquant.model import massive_tokens
from duquant.model.block_error import OPERANDS
from duquant.model.structure import SITES
from tests.callbacks.test_learned_transforms import StopAfter
from tests.in_process import (
    LIGHTNING_WARNINGS,
    LWC,
    calibrate,
    small_data,
    small_language_model,
    small_trainer,
    write_text,
)
from tests.small_run import write_small_model

pytestmark = LIGHTNING_WARNINGS
BLOCKS = 2
SMALL_RATIO = 1.5
"""A random model has no token that is ten times as large as others."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("source"), blocks=BLOCKS)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(autouse=True)
def _small_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(massive_tokens, "MASSIVE", SMALL_RATIO)


@pytest.fixture(scope="module")
def whole(source: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(massive_tokens, "MASSIVE", SMALL_RATIO)
        calibrate(small_language_model(source, output), small_data(source, text))
    return output


def seen_by_the_original(source: Path, windows: torch.Tensor) -> dict[tuple[int, str], Any]:
    """What enters the first linear of every site of the original model."""
    model, seen = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), {}
    for index, layer in enumerate(model.model.layers):
        for site in SITES:

            def keep(_: Any, inputs: Any, place: Any = (index, site.name)) -> None:
                seen[place] = inputs[0].abs()

            layer.get_submodule(site.linears[0]).register_forward_pre_hook(keep)
    with torch.no_grad():
        model(windows)
    return seen


def test_massive_tokens_are_those_of_the_original_model(
    whole: Path, source: Path, text: Path
) -> None:
    data = small_data(source, text)
    windows = data.calibration_windows()
    seen = seen_by_the_original(source, windows)
    found = {
        (record.index, site["site"]): site
        for record in BlockRecord.load_all(whole, BLOCKS)
        for site in record.massive_tokens
    }
    assert found
    for place, values in seen.items():
        magnitudes = values.amax(dim=-1).flatten()
        massive = int((magnitudes >= SMALL_RATIO * magnitudes.median()).sum())
        if place not in found:
            assert massive == 0
            continue
        site, largest = found[place], int(magnitudes.argmax())
        assert site["count"] == massive
        assert site["magnitude"] == pytest.approx(float(magnitudes.max()), rel=1e-4)
        assert site["channel"] == int(values.flatten(0, 1)[largest].argmax())
        token = site["tokens"][0]
        assert token["token_id"] == int(windows.flatten()[largest])
        assert token["position"] == largest % windows.shape[1]
        assert token["text"] == data.tokenizer.decode([token["token_id"]])


def test_every_site_has_an_error_below_that_of_the_block(whole: Path) -> None:
    for record in BlockRecord.load_all(whole, BLOCKS):
        names = ["attention_input", OPERANDS, "attention_output", "mlp_input", "mlp_output"]
        assert sorted(record.site_errors) == sorted(names)
        assert record.relative_error is not None
        assert all(0 < e < 1.2 * record.relative_error for e in record.site_errors.values())


@pytest.mark.parametrize("epochs", [1, LWC.epochs, LWC.epochs + 1])
def test_records_do_not_depend_on_an_interruption(
    whole: Path, source: Path, text: Path, tmp_path: Path, epochs: int
) -> None:
    """Inside of the first block, between two, and inside of the second."""
    model, data = small_language_model(source, tmp_path), small_data(source, text)
    calibrate(model, data, StopAfter(epochs), LastCheckpoint(tmp_path))
    again = small_language_model(source, tmp_path)
    again.run_description = model.run_description
    trainer = small_trainer(BlockProgression(), LastCheckpoint(tmp_path))
    trainer.fit(again, datamodule=data, ckpt_path=last_checkpoint(tmp_path))
    for ours, theirs in zip(
        BlockRecord.load_all(tmp_path, BLOCKS), BlockRecord.load_all(whole, BLOCKS), strict=True
    ):
        assert ours.massive_tokens == theirs.massive_tokens
        assert ours.site_errors == theirs.site_errors
