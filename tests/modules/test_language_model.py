"""A whole model under one Trainer: learning, skipping, repeating, measuring."""

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from callbacks.block_events import BlockObserver, BlockRecord
from callbacks.checkpointing import DurableCheckpointIO, LastCheckpoint
from duquant.config import LWCConfig
from duquant.data.streams import BlockSamples
from duquant.evaluation.perplexity import stream_losses
from duquant.model.site_report import SiteReport
from duquant.modules.language_model import LanguageModel
from duquant.modules.variants import FULL_PRECISION, QUANTIZED, ROUND_TO_NEAREST
from tests.block_by_block import CPU
from tests.in_process import (
    LIGHTNING_WARNINGS,
    NO_LWC,
    FinishedRun,
    calibrate,
    small_data,
    small_language_model,
    small_trainer,
    write_text,
)
from tests.small_run import stored_tensors, write_small_model

pytestmark = LIGHTNING_WARNINGS
BLOCKS = 2
EPOCHS = 4
CLIPPING_MATTERS: dict[str, Any] = {
    "weight_bits": 3,
    "activation_bits": 16,
    "lwc": LWCConfig(
        epochs=EPOCHS, learning_rate=0.2, initialization="constant", schedule="constant"
    ),
}
"""Weights in few bits under exact activations: what is left of the error is what clipping changes,
and factors that start far from where a search would put them have something to learn.
Over four seeds the last epoch's loss is 0.80 to 0.95 of the first one's, in both blocks."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("source"), blocks=BLOCKS)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def measure(run: FinishedRun, model: LanguageModel) -> dict[str, dict[str, float]]:
    small_trainer().validate(model, small_data(run.source, run.text), verbose=False)
    return model.perplexities


# Learning


def test_the_loss_falls_in_every_block(source: Path, text: Path, tmp_path: Path) -> None:
    model = small_language_model(source, tmp_path, **CLIPPING_MATTERS)
    calibrate(model, small_data(source, text))
    records = BlockRecord.load_all(tmp_path, BLOCKS)
    assert [record.index for record in records] == [0, 1]
    for record in records:
        assert len(record.lwc_losses) == EPOCHS
        assert record.lwc_losses[-1] < record.lwc_losses[0]
        assert record.skipped_steps == 0


def test_every_block_learned_its_own_factors(finished_run: FinishedRun) -> None:
    learned = [
        torch.cat([high.flatten() for high, _ in block.clip_factors().values()])
        for block in finished_run.model.blocks
    ]
    initial = torch.tensor(4.0).sigmoid()
    assert all((factors != initial).float().mean() > 0.9 for factors in learned)
    assert not torch.equal(*learned)


def test_a_finished_model_holds_no_weights(finished_run: FinishedRun) -> None:
    model = finished_run.model
    assert model.is_calibrated
    assert all(block.quantized is None for block in model.blocks)
    names = {name.split(".")[2] for name in model.state_dict() if name.startswith("blocks.")}
    assert names == {"clips", "has_begun", "skipped_steps"}
    assert not (finished_run.output / "streams").exists()


def test_without_lwc_every_block_takes_one_epoch_and_writes_a_checkpoint(
    source: Path, text: Path, tmp_path: Path
) -> None:
    class Watch(DurableCheckpointIO):
        saved: list[int] = []  # noqa: RUF012

        def save_checkpoint(self, checkpoint: dict[str, Any], *rest: Any, **options: Any) -> None:
            self.saved.append(int(checkpoint["state_dict"]["block_index"]))
            super().save_checkpoint(checkpoint, *rest, **options)

    model = small_language_model(source, tmp_path, lwc=NO_LWC)
    data = small_data(source, text)
    trainer = calibrate(model, data, LastCheckpoint(tmp_path), plugins=[Watch()])
    assert Watch.saved == list(range(1, BLOCKS + 1)), "each points behind the finished block"
    assert trainer.current_epoch == BLOCKS
    assert not list(model.parameters())
    assert model.directory.is_complete
    assert all(not record.lwc_losses for record in BlockRecord.load_all(tmp_path, BLOCKS))


# Not a number


class PlantNaN(BlockObserver):
    """Spoils one sample of one block's training data."""

    def on_block_entered(
        self, trainer: Trainer, model: LanguageModel, index: int, reports: dict[str, SiteReport]
    ) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if index == 1:
            samples: BlockSamples = data.samples
            samples.quantized_input = samples.quantized_input.clone()
            samples.quantized_input[3, 5, 7] = float("nan")


def test_a_planted_nan_is_skipped_and_counted(source: Path, text: Path, tmp_path: Path) -> None:
    model = small_language_model(source, tmp_path, **CLIPPING_MATTERS)
    calibrate(model, small_data(source, text), LastCheckpoint(tmp_path), PlantNaN())
    first, second = BlockRecord.load_all(tmp_path, BLOCKS)
    assert first.skipped_steps == 0
    assert second.skipped_steps == EPOCHS, "one batch in every epoch"
    assert all(math.isfinite(loss) for loss in second.lwc_losses)
    assert second.lwc_losses[-1] < second.lwc_losses[0]
    for name, tensor in stored_tensors(tmp_path).items():
        assert tensor.isfinite().all(), name
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    for name, tensor in checkpoint["state_dict"].items():
        assert tensor.isfinite().all(), name
    moments = checkpoint["optimizer_states"][0]["state"].values()
    assert all(value.isfinite().all() for state in moments for value in state.values())


# Repeating


def test_one_seed_gives_one_model(source: Path, text: Path, tmp_path: Path) -> None:
    stored = []
    for number, seed in enumerate((2, 2, 3)):
        output = tmp_path / str(number)
        calibrate(small_language_model(source, output, seed=seed), small_data(source, text))
        stored.append(stored_tensors(output))
    first, again, other = stored
    assert first.keys() == again.keys() == other.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())
    rotations = [name for name in first if name.endswith("rotations")]
    assert all(not torch.equal(first[name], other[name]) for name in rotations)


def test_each_block_draws_from_a_generator_of_its_own(source: Path, tmp_path: Path) -> None:
    model = small_language_model(source, tmp_path, seed=5)
    draws = [torch.randn(4, generator=model.generator(index)) for index in (0, 1, 0)]
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


# Checkpoints


def test_a_checkpoint_of_another_run_is_refused_naming_the_differences(
    finished_run: FinishedRun,
) -> None:
    model = finished_run.model
    checkpoint: dict[str, Any] = {}
    model.on_save_checkpoint(checkpoint)
    model.on_load_checkpoint(checkpoint)
    foreign = copy.deepcopy(checkpoint)
    foreign["duquant_run"]["recipe"]["weight_bits"] = 3
    foreign["duquant_run"]["data"]["seed"] = 7
    with pytest.raises(ValueError, match="another run") as refused:
        model.on_load_checkpoint(foreign)
    assert "recipe.weight_bits was 3, now 4" in str(refused.value)
    assert "data.seed was 7, now 2" in str(refused.value)
    with pytest.raises(ValueError, match="another run"):
        model.on_load_checkpoint({})


# Measuring


def test_every_variant_is_measured(finished_run: FinishedRun) -> None:
    values = finished_run.model.perplexities["topics"]
    assert set(values) == {FULL_PRECISION, ROUND_TO_NEAREST, QUANTIZED}
    assert all(math.isfinite(value) and value > 1 for value in values.values())
    assert len(set(values.values())) == 3


def test_variants_without_plain_rounding(source: Path, tmp_path: Path) -> None:
    assert small_language_model(source, tmp_path).variants == (FULL_PRECISION, QUANTIZED)


def test_a_fresh_module_measures_the_same(finished_run: FinishedRun) -> None:
    fresh = small_language_model(
        finished_run.source, finished_run.output, report_round_to_nearest=True
    )
    assert measure(finished_run, fresh) == finished_run.model.perplexities


def test_the_quantized_perplexity_is_that_of_the_stored_blocks(finished_run: FinishedRun) -> None:
    model, data = finished_run.model, finished_run.data
    losses = stream_losses(
        model.decoder,
        lambda index: [("stored", model.directory.read_block(index, model.decoder))],
        ["stored"],
        data.corpus_windows("topics"),
        CPU,
    )["stored"]
    expected = float(losses.double().mean().exp())
    # The same float32 losses, averaged in float64.
    assert model.perplexities["topics"][QUANTIZED] == pytest.approx(expected, rel=1e-12)


def test_chunks_and_several_corpora_change_no_number(finished_run: FinishedRun) -> None:
    model = small_language_model(finished_run.source, finished_run.output)
    data = small_data(
        finished_run.source,
        finished_run.text,
        validation={"one": str(finished_run.text), "two": str(finished_run.text)},
        validation_chunk=3,
    )
    small_trainer().validate(model, data, verbose=False)
    expected = finished_run.model.perplexities["topics"]
    for corpus in ("one", "two"):
        for variant, value in model.perplexities[corpus].items():
            # Three windows in one matrix product may add in another order than four.
            assert value == pytest.approx(expected[variant], rel=1e-5)


def test_plain_rounding_to_16_bits_is_full_precision(source: Path, tmp_path: Path) -> None:
    model = small_language_model(
        source, tmp_path, weight_bits=16, activation_bits=16, report_round_to_nearest=True
    )
    model.directory.read_block = lambda index, decoder: decoder.load_block(index)  # type: ignore[method-assign]
    hidden = torch.randn(2, 16, 64)
    context = model.decoder.contexts(16, CPU)[0]
    outputs = [
        block(hidden, **context)
        for name, block in model.load_variants(0)
        if name in (FULL_PRECISION, ROUND_TO_NEAREST)
    ]
    # Q and K still pass through their Hadamard matrix, which leaves float32 rounding behind.
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_half_a_model_is_not_measured(finished_run: FinishedRun, tmp_path: Path) -> None:
    shutil.copytree(finished_run.output, tmp_path / "half")
    model = small_language_model(finished_run.source, tmp_path / "half")
    model.directory.block_file(1).unlink()
    with pytest.raises(ValueError, match=r"holds 1 of 2 quantized blocks: run fit"):
        measure(finished_run, model)


def test_a_damaged_block_is_named(finished_run: FinishedRun, tmp_path: Path) -> None:
    shutil.copytree(finished_run.output, tmp_path / "damaged")
    model = small_language_model(finished_run.source, tmp_path / "damaged")
    file = model.directory.block_file(1)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model-block-00001\.safetensors is damaged"):
        measure(finished_run, model)


def test_at_16_bits_a_run_only_rotates(source: Path, text: Path, tmp_path: Path) -> None:
    """The finished model is the original one: the same perplexity, whatever LWC was asked for."""
    model = small_language_model(
        source, tmp_path, weight_bits=16, activation_bits=16, lwc=LWCConfig(epochs=5)
    )
    trainer = calibrate(model, small_data(source, text))
    assert trainer.current_epoch == BLOCKS, "nothing to learn, one epoch a block"
    small_trainer().validate(model, small_data(source, text), verbose=False)
    values = model.perplexities["topics"]
    # Rotating in float32 leaves errors of 1e-6 relative to outputs of up to 50.
    assert values[QUANTIZED] == pytest.approx(values[FULL_PRECISION], rel=1e-3)
