"""Activation streams between blocks."""

from pathlib import Path

import pytest
import torch

from duquant.config import LWCConfig, Recipe, TrainingConfig
from duquant.data.batches import batch_loader
from duquant.data.streams import CPU, BlockSamples, Stream, Streams, StreamSizes
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
    batches = list(batch_loader(samples, 2, CPU))
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
    batches = list(batch_loader(samples, 2, CPU))
    assert torch.equal(torch.cat([batch.quantized_input for batch in batches]), inputs)
    assert torch.equal(torch.cat([batch.target for batch in batches]), targets)


class CountedStream:
    """A stream that counts how often it is read."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.device, self.reads = values, values.device, 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int | slice) -> torch.Tensor:
        self.reads += 1
        return self.values[index]


def test_a_batch_is_read_at_once() -> None:
    inputs, targets = (CountedStream(torch.randn(5, 6, 8)) for _ in range(2))
    samples = BlockSamples(inputs, targets)  # type: ignore[arg-type]
    batches = list(batch_loader(samples, 2, CPU))
    assert (inputs.reads, targets.reads) == (3, 3)
    assert all(batch.target.data_ptr() % 64 == 0 for batch in batches), "they are aligned"
    assert batches[0].target.data_ptr() != targets.values.data_ptr()


@pytest.mark.parametrize("is_stored", [True, False])
def test_samples_in_any_order(is_stored: bool, tmp_path: Path) -> None:
    values = torch.randn(6, 5, 4)
    path, order = tmp_path / "streams.safetensors", [4, 0, 5]
    lay_out(path, {"values": values.shape}, torch.float32)
    stored = open_tensors(path)["values"]
    stored[:] = values
    stream: Stream = stored if is_stored else values
    batch = BlockSamples(stream, stream).__getitems__(order)
    assert torch.equal(batch.target, values[order])
    assert batch.augmented_target.shape == (3, 0)
    assert torch.equal(BlockSamples(stream, stream)[4].target, values[4])


def test_training_on_the_full_precision_stream_keeps_one_more() -> None:
    shape = (4, 8, 16, torch.float32)
    plain = StreamSizes.of(Recipe(), *shape)
    kept = StreamSizes.of(Recipe(training=TrainingConfig(inputs="full_precision")), *shape)
    assert kept.bytes_at_once - plain.bytes_at_once == plain.stream_bytes
