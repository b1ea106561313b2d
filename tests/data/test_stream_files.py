"""The streams' files: a boundary in memory and on disk, or on disk alone."""

from pathlib import Path

import pytest
import torch

from duquant.data.stream_files import StreamFiles
from duquant.data.streams import Streams, StreamSizes

Places = pytest.mark.parametrize("in_memory", [True, False])
Kinds = pytest.mark.parametrize("has_quantized", [True, False])


def stream_files(
    folder: Path, *, in_memory: bool = True, has_quantized: bool = True, samples: int = 4
) -> StreamFiles:
    sizes = StreamSizes(samples, 6, 8, torch.float32, has_quantized, has_quantized)
    return StreamFiles(folder / "streams", sizes, in_memory=in_memory)


def fill(files: StreamFiles, block: int) -> Streams:
    """What a run does: chunk by chunk into a draft."""
    generator = torch.Generator().manual_seed(block)
    draft = files.draft(block)
    parts = [draft.full_precision]
    if len(draft.quantized) and draft.quantized is not draft.full_precision:
        parts.append(draft.quantized)
    for part in parts:
        for start in range(0, len(part), 3):
            chunk = part[start : start + 3]
            part[start : start + 3] = torch.randn(chunk.shape, generator=generator)
    draft.calibration_mean = torch.randn(1, 6, 8, generator=generator)
    return draft


def assert_same(ours: Streams, theirs: Streams) -> None:
    assert torch.equal(ours.full_precision[:], theirs.full_precision[:])
    assert torch.equal(ours.quantized[:], theirs.quantized[:])
    assert torch.equal(ours.calibration_mean, theirs.calibration_mean)


@Kinds
@pytest.mark.parametrize("block", [0, 3])
def test_both_places_hold_and_store_the_same(
    tmp_path: Path, has_quantized: bool, block: int
) -> None:
    kept, mapped = (
        stream_files(tmp_path / str(place), in_memory=place, has_quantized=has_quantized)
        for place in (True, False)
    )
    ours, theirs = (files.save(block, fill(files, block)) for files in (kept, mapped))
    assert isinstance(ours.full_precision, torch.Tensor)
    assert not isinstance(theirs.full_precision, torch.Tensor)
    assert_same(ours, theirs)
    assert kept.path(block).read_bytes() == mapped.path(block).read_bytes()


@Places
@Kinds
@pytest.mark.parametrize("written_in_memory", [True, False])
def test_what_is_saved_comes_back_exactly(
    tmp_path: Path, in_memory: bool, has_quantized: bool, written_in_memory: bool
) -> None:
    """A run may go on with another amount of memory than it began with."""
    writer = stream_files(tmp_path, in_memory=written_in_memory, has_quantized=has_quantized)
    written = writer.save(3, fill(writer, 3))
    reader = stream_files(tmp_path, in_memory=in_memory, has_quantized=has_quantized)
    assert_same(reader.load(3), written)


@Places
@Kinds
def test_streams_that_are_the_same_are_stored_once(
    tmp_path: Path, in_memory: bool, has_quantized: bool
) -> None:
    files = stream_files(tmp_path, in_memory=in_memory, has_quantized=has_quantized, samples=64)
    opened = files.save(0, fill(files, 0))
    assert files.path(0).stat().st_size < 1.1 * files.sizes.stream_bytes
    assert (opened.quantized is opened.full_precision) == has_quantized
    assert_same(files.load(0), opened)


@Places
def test_the_newest_two_are_kept(tmp_path: Path, in_memory: bool) -> None:
    files = stream_files(tmp_path, in_memory=in_memory)
    for block in range(5):
        files.save(block, fill(files, block))
        kept = sorted(files.directory.glob("block_*"))
        assert kept == [files.path(index) for index in range(max(0, block - 1), block + 1)]


def test_a_draft_on_disk_takes_no_room_in_memory_and_is_the_file(tmp_path: Path) -> None:
    files = stream_files(tmp_path, in_memory=False)
    draft = fill(files, 1)
    assert not files.path(1).exists(), "half a boundary is not to be found"
    (partial,) = files.directory.glob(".block_00001*")
    written = partial.stat().st_ino
    files.save(1, draft)
    assert files.path(1).stat().st_ino == written, "renamed, not copied"


@Places
def test_removing_takes_the_folder_along_but_nothing_foreign(
    tmp_path: Path, in_memory: bool
) -> None:
    files = stream_files(tmp_path, in_memory=in_memory)
    files.remove()  # nothing there yet
    files.save(1, fill(files, 1))
    files.draft(2)  # and a file that nobody finished
    files.remove()
    assert not files.directory.exists()
    files.save(0, fill(files, 0))
    (files.directory / "letter.txt").write_text("dear reader")
    files.remove()
    assert [file.name for file in files.directory.iterdir()] == ["letter.txt"]


@Places
def test_a_missing_file_is_named(tmp_path: Path, in_memory: bool) -> None:
    with pytest.raises(ValueError, match=r"block_00002\.safetensors is missing"):
        stream_files(tmp_path, in_memory=in_memory).load(2)


@Places
@pytest.mark.parametrize("left", [0, 5, 400])
def test_a_truncated_file_is_named(tmp_path: Path, in_memory: bool, left: int) -> None:
    files = stream_files(tmp_path, in_memory=in_memory)
    files.save(1, fill(files, 1))
    content = files.path(1).read_bytes()
    files.path(1).write_bytes(content[:left])
    with pytest.raises(ValueError, match=r"block_00001\.safetensors is damaged"):
        files.load(1)
