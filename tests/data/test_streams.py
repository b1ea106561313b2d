"""Activation streams between blocks."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from duquant.config import LWCConfig, Recipe, TrainingConfig
from duquant.data.streams import BlockSamples, Stream, Streams, StreamSizes
from duquant.model.batch import BlockBatch
from duquant.model.file_tensor import lay_out, open_tensors

RECIPES = {
    "no LWC": Recipe(lwc=LWCConfig(epochs=0)),
    "LWC": Recipe(),
    "augmented": Recipe(lwc=LWCConfig(augmented_loss=True)),
    "nothing to learn": Recipe(weight_bits=16, lwc=LWCConfig(augmented_loss=True)),
}


@pytest.mark.parametrize(
    ("recipe", "at_once", "at_boundary"),
    [("no LWC", 2, 1), ("LWC", 3, 2), ("augmented", 4, 2), ("nothing to learn", 2, 1)],
)
def test_sizes_count_what_a_recipe_needs(recipe: str, at_once: int, at_boundary: int) -> None:
    sizes = StreamSizes.of(RECIPES[recipe], 4, 6, 8, torch.bfloat16)
    assert sizes.stream_bytes == 4 * 6 * 8 * 2
    assert sizes.bytes_at_once == at_once * sizes.stream_bytes
    assert sizes.boundary_bytes == at_boundary * sizes.stream_bytes + 6 * 8 * 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_draft_has_room_for_what_its_sizes_say(recipe: str) -> None:
    sizes = StreamSizes.of(RECIPES[recipe], 4, 6, 8, torch.bfloat16)
    draft, start = Streams.draft(sizes), Streams.draft(sizes, at_start=True)
    assert draft.full_precision.shape == start.full_precision.shape == (4, 6, 8)
    assert draft.full_precision.dtype == torch.bfloat16
    assert len(draft.quantized) == len(start.quantized) == (4 if sizes.has_quantized else 0)
    assert draft.quantized is not draft.full_precision
    assert (start.quantized is start.full_precision) == sizes.has_quantized
    assert (draft.augmented is not None) == sizes.has_augmented
    assert start.augmented is None


@pytest.mark.parametrize("is_augmented", [True, False])
def test_samples_are_collated_in_order(is_augmented: bool) -> None:
    inputs, targets, augmented = torch.randn(3, 5, 6, 8).unbind()
    samples = BlockSamples(inputs, targets, augmented if is_augmented else None)
    batches = list(DataLoader(samples, batch_size=2, collate_fn=BlockBatch.collate))
    assert len(samples) == 5
    assert [len(batch.quantized_input) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.quantized_input for batch in batches]), inputs)
    assert torch.equal(torch.cat([batch.target for batch in batches]), targets)
    if is_augmented:
        assert torch.equal(torch.cat([batch.augmented_target for batch in batches]), augmented)
    else:
        assert all(batch.augmented_target.numel() == 0 for batch in batches)


def test_samples_may_lie_on_disk(tmp_path: Path) -> None:
    """A sample is read when it is its turn."""
    inputs, targets = torch.randn(2, 5, 6, 8).unbind()
    path = tmp_path / "streams.safetensors"
    lay_out(path, {"inputs": inputs.shape, "targets": targets.shape}, torch.float32)
    stored: dict[str, Stream] = dict(open_tensors(path))
    stored["inputs"][:], stored["targets"][:] = inputs, targets
    samples = BlockSamples(stored["inputs"], stored["targets"])
    batches = list(DataLoader(samples, batch_size=2, collate_fn=BlockBatch.collate))
    assert torch.equal(torch.cat([batch.quantized_input for batch in batches]), inputs)
    assert torch.equal(torch.cat([batch.target for batch in batches]), targets)


def test_training_on_the_full_precision_stream_keeps_one_more() -> None:
    shape = (4, 8, 16, torch.float32)
    plain = StreamSizes.of(Recipe(), *shape)
    kept = StreamSizes.of(Recipe(training=TrainingConfig(inputs="full_precision")), *shape)
    assert kept.bytes_at_once - plain.bytes_at_once == plain.stream_bytes
