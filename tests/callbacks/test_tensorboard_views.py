"""After a run, TensorBoard holds what the callback's docstring promises."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import tensorboard_views
from callbacks.block_events import BlockRecord
from callbacks.tensorboard_views import TensorBoardViews
from duquant.model.site_report import SiteReport
from duquant.model.structure import LINEARS, SITES, short_name
from tests.in_process import LIGHTNING_WARNINGS, LWC, FinishedRun

pytestmark = LIGHTNING_WARNINGS
BLOCKS = 2
SIZES = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}


@pytest.fixture(scope="module")
def events(finished_run: FinishedRun) -> EventAccumulator:
    accumulator = EventAccumulator(str(finished_run.output / "tensorboard"), SIZES)
    accumulator.Reload()
    return accumulator


def promised() -> dict[str, set[str]]:
    """The tags of the docstring's table, spelled out for this run."""
    scalars = {
        "lwc/loss", "lwc/last_loss", "lwc/skipped_steps", "block_error/relative",
        "cost/seconds", "cost/peak_memory_gb",
        *(f"lwc_by_block/{block:02d}" for block in range(BLOCKS)),
        *(f"peaks_{moment}/{site.name}" for site in SITES for moment in ("before", "after")),
        *(f"perplexity/topics/{variant}"
          for variant in ("full_precision", "round_to_nearest", "quantized")),
        *(f"hparams/topics/{variant}"
          for variant in ("full_precision", "round_to_nearest", "quantized")),
    }  # fmt: skip
    histograms = {f"clip_{end}/{short_name(name)}" for name in LINEARS for end in ("high", "low")}
    images = {f"outliers/block_{block:02d}" for block in range(BLOCKS)}
    return {"scalars": scalars, "histograms": histograms, "images": images}


@pytest.mark.parametrize("kind", promised())
def test_every_promised_tag_is_there(events: EventAccumulator, kind: str) -> None:
    assert promised()[kind] == set(events.Tags()[kind])


def test_the_docstring_promises_no_less() -> None:
    table = str(tensorboard_views.__doc__)
    for tag in ("lwc/loss", "lwc_by_block/NN", "lwc/skipped_steps", "lwc/last_loss",
                "peaks_before/SITE", "clip_high/LINEAR", "block_error/relative", "cost/seconds",
                "outliers/block_NN",
                "perplexity/", "HParams"):  # fmt: skip
        assert tag in table


def test_there_is_a_loss_for_every_step(
    events: EventAccumulator, finished_run: FinishedRun
) -> None:
    steps = events.Scalars("lwc/loss")
    count = BLOCKS * LWC.epochs * 4
    assert [event.step for event in steps] == list(range(count))
    epochs = np.array([event.value for event in steps]).reshape(BLOCKS, LWC.epochs, 4).mean(-1)
    for block, record in enumerate(BlockRecord.load_all(finished_run.output, BLOCKS)):
        curve = [event.value for event in events.Scalars(f"lwc_by_block/{block:02d}")]
        # Event files hold float32.
        assert curve == pytest.approx(record.lwc_losses, rel=1e-6)
        assert epochs[block].tolist() == pytest.approx(record.lwc_losses, rel=1e-6)


def test_blocks_are_the_steps_of_what_is_told_per_block(
    events: EventAccumulator, finished_run: FinishedRun
) -> None:
    records = BlockRecord.load_all(finished_run.output, BLOCKS)
    for site in SITES:
        for moment in ("before", "after"):
            told = events.Scalars(f"peaks_{moment}/{site.name}")
            expected = [record.sites[site.name][f"peak_{moment}"] for record in records]
            assert [event.step for event in told] == [0, 1]
            assert [event.value for event in told] == pytest.approx(expected, rel=1e-6)
    assert [event.value for event in events.Scalars("lwc/skipped_steps")] == [0, 0]
    errors = [event.value for event in events.Scalars("block_error/relative")]
    assert errors == pytest.approx([record.relative_error for record in records], rel=1e-6)
    assert [event.step for event in events.Histograms("clip_high/q_proj")] == [0, 1]


def test_perplexities_are_those_of_the_summary(
    events: EventAccumulator, finished_run: FinishedRun
) -> None:
    for variant, value in finished_run.model.perplexities["topics"].items():
        for tag in ("perplexity", "hparams"):
            (event,) = events.Scalars(f"{tag}/topics/{variant}")
            assert event.value == pytest.approx(value, rel=1e-6)


def test_hparams_hold_the_recipe(events: EventAccumulator) -> None:
    data = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    for name in (b"weight_bits", b"rotation.selector", b"lwc.learning_rate", b"smoothing.alpha"):
        assert name in data


def test_pictures_are_in_tensorboard_and_on_disk(
    events: EventAccumulator, finished_run: FinishedRun
) -> None:
    for block in range(BLOCKS):
        (event,) = events.Images(f"outliers/block_{block:02d}")
        assert event.step == block
        shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        file = finished_run.output / "blocks" / f"outliers_{block:05d}.png"
        stored = np.asarray(Image.open(file).convert("RGB"))
        assert np.array_equal(shown, stored)
        assert stored.std() > 5, "an empty sheet has next to no variance"


def test_without_tensorboard_pictures_are_still_drawn(
    finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    views, model = TensorBoardViews(), finished_run.model
    monkeypatch.setattr(model, "output_dir", tmp_path)
    reports = {"mlp_input": SiteReport({"original": torch.rand(8)})}
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    views.on_block_entered(trainer, model, 0, reports)
    views.on_block_finished(trainer, model, BlockRecord(0))
    views.on_validation_end(trainer, model)
    assert (tmp_path / "blocks" / "outliers_00000.png").is_file()
