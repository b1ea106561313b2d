"""Activation streams between blocks, and their files."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from duquant.data.streams import BlockSamples, StreamFiles, Streams
from duquant.model.batch import BlockBatch


def streams(seed: int = 0, *, with_quantized: bool = True) -> Streams:
    generator = torch.Generator().manual_seed(seed)
    full_precision = torch.randn(4, 6, 8, generator=generator)
    quantized = torch.randn(4, 6, 8, generator=generator) if with_quantized else full_precision[:0]
    return Streams(full_precision, quantized, torch.randn(1, 6, 8, generator=generator))


def assert_same(ours: Streams, theirs: Streams) -> None:
    assert torch.equal(ours.full_precision, theirs.full_precision)
    assert torch.equal(ours.quantized, theirs.quantized)
    assert torch.equal(ours.statistic, theirs.statistic)


@pytest.fixture
def files(tmp_path: Path) -> StreamFiles:
    return StreamFiles(tmp_path / "streams")


def test_all_streams_begin_at_the_embeddings() -> None:
    hidden = torch.randn(4, 6, 8)
    opened = Streams.open(hidden, with_quantized=True)
    assert opened.full_precision is hidden
    assert opened.quantized is hidden
    torch.testing.assert_close(opened.statistic[0], sum(hidden.unbind()) / 4)
    assert Streams.open(hidden, with_quantized=False).quantized.shape == (0, 6, 8)


@pytest.mark.parametrize("with_quantized", [True, False])
def test_what_is_saved_comes_back_exactly(files: StreamFiles, with_quantized: bool) -> None:
    written = streams(with_quantized=with_quantized)
    files.save(3, written)
    assert_same(files.load(3, with_quantized=with_quantized), written)


@pytest.mark.parametrize("with_quantized", [True, False])
def test_streams_that_share_memory_are_stored_once(
    files: StreamFiles, with_quantized: bool
) -> None:
    opened = Streams.open(torch.randn(64, 16, 8), with_quantized=with_quantized)
    files.save(0, opened)
    assert files.path(0).stat().st_size < 1.1 * opened.full_precision.nbytes
    assert_same(files.load(0, with_quantized=with_quantized), opened)


def test_the_newest_two_are_kept(files: StreamFiles) -> None:
    for block in range(5):
        files.save(block, streams(block))
        kept = sorted(files.directory.iterdir())
        assert kept == [files.path(index) for index in range(max(0, block - 1), block + 1)]
    assert_same(files.load(3, with_quantized=True), streams(3))
    assert_same(files.load(4, with_quantized=True), streams(4))


def test_removing_takes_the_folder_along_but_nothing_foreign(files: StreamFiles) -> None:
    files.remove()  # nothing there yet
    files.save(0, streams())
    files.remove()
    assert not files.directory.exists()
    files.save(0, streams())
    (files.directory / "letter.txt").write_text("dear reader")
    files.remove()
    assert [file.name for file in files.directory.iterdir()] == ["letter.txt"]


def test_a_missing_file_is_named(files: StreamFiles) -> None:
    with pytest.raises(ValueError, match=r"block_00002\.safetensors is missing"):
        files.load(2, with_quantized=True)


@pytest.mark.parametrize("left", [0, 5, 400])
def test_a_truncated_file_is_named(files: StreamFiles, left: int) -> None:
    files.save(1, streams())
    content = files.path(1).read_bytes()
    files.path(1).write_bytes(content[:left])
    with pytest.raises(ValueError, match=r"block_00001\.safetensors is damaged"):
        files.load(1, with_quantized=True)


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
