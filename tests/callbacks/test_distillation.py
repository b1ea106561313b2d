"""Runs whose last turn is the whole model's: what it learns, keeps, and how it resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from callbacks.block_events import BlockRecord
from callbacks.block_progression import BlockProgression
from callbacks.checkpointing import LastCheckpoint, last_checkpoint, require_calibrated
from callbacks.distillation_turn import distillation_complaint
from callbacks.run_directory import describe_run
from callbacks.run_words import describe_distillation, distillation_in_words
from duquant.config import ClippingConfig, DistillationConfig, RoundingConfig
from duquant.data.datamodule import CalibrationDataModule
from duquant.export.model_directory import ModelDirectory
from duquant.modules.language_model import LanguageModel
from tests.callbacks.test_block_progression import assert_same_tensors
from tests.callbacks.test_learned_transforms import StopAfter
from tests.in_process import (
    LEARNS_ALL,
    LIGHTNING_WARNINGS,
    NO_LWC,
    calibrate,
    small_data,
    small_language_model,
    small_trainer,
    write_text,
)
from tests.small_run import stored_tensors, write_small_model

pytestmark = LIGHTNING_WARNINGS
DISTILLATION = DistillationConfig(epochs=2, learning_rate=0.002, batch_size=2)
LEARNS_WITHOUT_LWC: dict[str, Any] = {
    "lwc": NO_LWC,
    "clipping": ClippingConfig(activations="search"),
    "rounding": RoundingConfig("gptq"),
}
RECIPES = {"learns all": LEARNS_ALL, "without LWC": LEARNS_WITHOUT_LWC}
BLOCK_EPOCHS = {"learns all": 2 * LEARNS_ALL["lwc"].epochs, "without LWC": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("model"), blocks=2)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def whole(source: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of every recipe."""
    found = {}
    for name, options in RECIPES.items():
        found[name] = tmp_path_factory.mktemp("whole")
        model = small_language_model(source, found[name], distillation=DISTILLATION, **options)
        calibrate(model, few_samples(source, text), LastCheckpoint(found[name]))
        assert model.is_calibrated
    return found


def few_samples(source: Path, text: Path) -> CalibrationDataModule:
    """Two steps an epoch: enough where nothing has to become good."""
    return small_data(source, text, num_samples=4)


def resume(source: Path, text: Path, output: Path, **options: Any) -> LanguageModel:
    """Go on from the last checkpoint, to the end."""
    model = small_language_model(source, output, distillation=DISTILLATION, **options)
    data = few_samples(source, text)
    model.run_description = describe_run(model, data)
    trainer = small_trainer(BlockProgression(), LastCheckpoint(output))
    trainer.fit(model, datamodule=data, ckpt_path=last_checkpoint(output))
    return model


@pytest.mark.parametrize(
    ("recipe", "further"),
    [*(("learns all", further) for further in (-1, 0, 1)), ("without LWC", 0), ("without LWC", 1)],
)
def test_it_goes_on_where_it_stopped(
    whole: dict[str, Path], source: Path, text: Path, tmp_path: Path, recipe: str, further: int
) -> None:
    """In the last block, between the blocks and the whole model, and between its epochs."""
    options = RECIPES[recipe]
    model = small_language_model(source, tmp_path, distillation=DISTILLATION, **options)
    stop = StopAfter(BLOCK_EPOCHS[recipe] + further)
    calibrate(model, few_samples(source, text), stop, LastCheckpoint(tmp_path))
    assert not model.is_calibrated
    assert model.is_distilling == (further >= 0)
    assert resume(source, text, tmp_path, **options).is_calibrated
    assert_same_tensors(tmp_path, whole[recipe])
    assert not (tmp_path / "streams").exists()


def test_activations_that_are_kept_give_the_same(
    whole: dict[str, Path],
    source: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def recompute(*_: Any, **__: Any) -> None:
        pytest.fail("a block is computed again")

    monkeypatch.setattr("duquant.modules.distillation.checkpoint", recompute)
    options = {"distillation": DISTILLATION, "gradient_checkpointing": False, **LEARNS_ALL}
    model = small_language_model(source, tmp_path, **options)
    calibrate(model, few_samples(source, text), LastCheckpoint(tmp_path))
    assert_same_tensors(tmp_path, whole["learns all"])


class Died(Exception):
    """The process is gone."""


def test_a_run_that_dies_while_blocks_are_stored_again_ends_the_same(
    whole: dict[str, Path],
    source: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some blocks hold learned values already; the checkpoint has those that they began with."""
    once = DistillationConfig(epochs=1, learning_rate=0.002, batch_size=2)
    outputs = [tmp_path / name for name in ("whole", "died")]
    models = [small_language_model(source, o, distillation=once, **LEARNS_ALL) for o in outputs]
    data = few_samples(source, text)
    calibrate(models[0], data, LastCheckpoint(outputs[0]))
    replace = ModelDirectory.replace_tensors

    def die(self: ModelDirectory, index: int, values: dict[str, torch.Tensor]) -> None:
        if index == 1:
            raise Died
        replace(self, index, values)

    monkeypatch.setattr(ModelDirectory, "replace_tensors", die)
    with pytest.raises(Died):
        calibrate(models[1], data, LastCheckpoint(outputs[1]))
    monkeypatch.undo()
    again = small_language_model(source, outputs[1], distillation=once, **LEARNS_ALL)
    again.run_description = models[1].run_description
    trainer = small_trainer(BlockProgression(), LastCheckpoint(outputs[1]))
    trainer.fit(again, datamodule=data, ckpt_path=last_checkpoint(outputs[1]))
    assert_same_tensors(outputs[1], outputs[0])


def test_stored_dtypes_are_kept(source: Path, text: Path, tmp_path: Path) -> None:
    """In half precision too, where small steps of what is stored would be lost."""
    options: dict[str, Any] = {"dtype": "bfloat16", **LEARNS_ALL}
    plain, better = tmp_path / "plain", tmp_path / "better"
    calibrate(small_language_model(source, plain, **options), few_samples(source, text))
    model = small_language_model(source, better, distillation=DISTILLATION, **options)
    calibrate(model, few_samples(source, text))
    before, after = stored_tensors(plain), stored_tensors(better)
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    assert model.distillation is not None
    assert all(p.dtype == torch.float32 for p in model.distillation.values.parameters())
    assert any(not torch.equal(before[n], after[n]) for n in before if n.endswith(".bias"))


class Losses(Callback):
    """Keeps every step's loss of the whole model."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        if pl_module.is_distilling:
            self.values.append(float(pl_module.learner.step_loss))


@pytest.mark.parametrize("recipe", RECIPES)
def test_codes_stay_and_predictions_come_nearer(
    source: Path, text: Path, tmp_path: Path, recipe: str
) -> None:
    options, losses, data = RECIPES[recipe], Losses(), small_data(source, text)
    plain, better = tmp_path / "plain", tmp_path / "better"
    calibrate(small_language_model(source, plain, **options), data)
    settings = DistillationConfig(epochs=6, learning_rate=0.002, batch_size=2)
    model = small_language_model(source, better, distillation=settings, **options)
    calibrate(model, small_data(source, text), losses)
    before, after = stored_tensors(plain), stored_tensors(better)
    assert before.keys() == after.keys()
    learned = {name for name in after if not torch.equal(before[name], after[name])}
    assert all(after[name].is_floating_point() for name in learned)
    parts = {name.rpartition(".")[2] for name in learned}
    assert parts >= {"weight", "rotations", "clip_ends"}
    assert not parts & {"packed", "scale", "zero"}
    assert not any("embed" in name for name in learned)
    steps = len(losses.values) // 6
    assert sum(losses.values[-steps:]) < 0.9 * sum(losses.values[:steps])
    windows = data.calibration_windows()
    original = AutoModelForCausalLM.from_pretrained(source)
    divergences = []
    for output in (plain, better):
        quantized = AutoModelForCausalLM.from_pretrained(output / "model")
        with torch.no_grad():
            p, q = (m(windows).logits.log_softmax(-1) for m in (original, quantized))
        divergences.append(float(F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()))
    assert divergences[1] < 0.9 * divergences[0]


def test_it_complains_where_nothing_was_gained() -> None:
    assert distillation_complaint([0.3, 0.2]) == ""
    assert distillation_complaint([0.3]) == ""
    complaint = distillation_complaint([0.2, 0.3])
    assert "0.2 -> 0.3" in complaint
    record = BlockRecord(2, lwc_losses=[0.2, 0.3], complaint=complaint)
    assert complaint in distillation_in_words(describe_distillation(record))


def test_half_a_distillation_is_not_measured(source: Path, text: Path, tmp_path: Path) -> None:
    """Every block is there, but not the model that the recipe makes."""
    model = small_language_model(source, tmp_path, distillation=DISTILLATION, **LEARNS_ALL)
    data = few_samples(source, text)
    stop = StopAfter(BLOCK_EPOCHS["learns all"] + 1)
    calibrate(model, data, stop, LastCheckpoint(tmp_path))
    with pytest.raises(ValueError, match="2 of 2 quantized blocks, and is not complete yet"):
        small_trainer().validate(model, data, verbose=False)
    with pytest.raises(ValueError, match="while the whole model learned"):
        require_calibrated(model)
