"""A file that cannot be written is named with the reason and a remedy, whoever writes it."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from callbacks.checkpointing import DurableCheckpointIO
from duquant.atomic_files import write_durably, write_json, write_tensors, write_text
from duquant.write_errors import REMEDIES, CannotWriteError, naming, naming_full_disks

TENSORS = {"a": torch.arange(40_000.0)}
WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: write_text(path, "x" * 100_000),
    "json": lambda path: write_json(path, {"x": "x" * 100_000}),
    "tensors": lambda path: write_tensors(path, TENSORS),
    "checkpoint": lambda path: DurableCheckpointIO().save_checkpoint({"a": TENSORS}, path),
}


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The operating system writes no more into any file, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_one_line(error: OSError, path: Path | str, reason: int) -> None:
    message = str(error)
    assert message.startswith(f"{path} cannot be written: {os.strerror(reason)}: ")
    assert "\n" not in message
    assert error.errno == reason


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("num_bytes", [0, 1, 100, 4096, 90_000])
def test_a_disk_that_takes_no_more(writer: str, num_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    WRITERS[writer](path)
    kept = path.read_bytes()
    with files_of_at_most(num_bytes), pytest.raises(CannotWriteError) as refused:
        WRITERS[writer](path)
    assert_one_line(refused.value, path, errno.EFBIG)
    assert path.read_bytes() == kept
    WRITERS[writer](path)


def _file_for_directory(path: Path) -> None:
    path.parent.write_text("a letter")


def _file_above(path: Path) -> None:
    path.parent.parent.mkdir(exist_ok=True)
    path.parent.parent.rmdir()
    path.parent.parent.write_text("a letter")


def _directory_for_file(path: Path) -> None:
    (path / "inside").mkdir(parents=True)


OBSTACLES: dict[str, tuple[Callable[[Path], None], int]] = {
    "a file for its directory": (_file_for_directory, errno.EEXIST),
    "a file above": (_file_above, errno.ENOTDIR),
    "a directory for it": (_directory_for_file, errno.EISDIR),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_something_stands_in_the_way(writer: str, obstacle: str, tmp_path: Path) -> None:
    path = tmp_path / "above" / "folder" / "file"
    plant, reason = OBSTACLES[obstacle]
    path.parent.parent.mkdir()
    plant(path)
    with pytest.raises(CannotWriteError) as refused:
        WRITERS[writer](path)
    assert_one_line(refused.value, path, reason)


@pytest.mark.parametrize("number", REMEDIES)
def test_every_reason_has_its_remedy(number: int, tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(CannotWriteError) as refused:
        write_durably(tmp_path / "file", fail)
    assert_one_line(refused.value, tmp_path / "file", number)
    assert str(refused.value).endswith(REMEDIES[number])


def test_a_reason_that_nobody_knows_is_still_named(tmp_path: Path) -> None:
    reason = r"file cannot be written: Too many links$"
    with pytest.raises(CannotWriteError, match=reason), naming(tmp_path / "file"):
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))


@pytest.mark.parametrize("error", [RuntimeError("no"), SafetensorError("odd"), ValueError("x")])
def test_errors_of_other_kinds_come_through(error: Exception, tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        write_durably(tmp_path / "file", fail)
    assert raised.value is error


def test_safetensors_tells_its_number(tmp_path: Path) -> None:
    with pytest.raises(CannotWriteError) as refused:
        write_durably(
            tmp_path / "file", lambda path: save_file(TENSORS, path.with_name("no") / "x")
        )
    assert_one_line(refused.value, tmp_path / "file", errno.ENOENT)


def test_a_full_disk_without_a_name(tmp_path: Path) -> None:
    def fail(number: int, *name: str) -> None:
        with naming_full_disks(tmp_path):
            raise OSError(number, os.strerror(number), *name)

    with pytest.raises(CannotWriteError) as refused:
        fail(errno.ENOSPC)
    assert_one_line(refused.value, f"a file in {tmp_path}", errno.ENOSPC)
    with pytest.raises(CannotWriteError) as refused:
        fail(errno.EDQUOT, "/else/where")
    assert_one_line(refused.value, Path("/else/where"), errno.EDQUOT)
    with pytest.raises(FileNotFoundError):
        fail(errno.ENOENT, "/else/where")
