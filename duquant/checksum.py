"""Checksums inside of the files that a run resumes from.

A checksum beside its file could be that of another moment. Inside, both are replaced in one step:

    safetensors   in the header's metadata, over the whole file with zeros in its place
    archives      (of ``torch.save``) in the comment that ends a zip file, over all before it
    JSON          under the key "checksum", over all other values

Files of earlier releases carry none. They are read as they are, which is said once. Checksums find
accidents, not attacks.
"""

import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

from xxhash import xxh3_64, xxh3_64_hexdigest

from duquant.atomic_files import LENGTH_BYTES

CHECKSUM = "checksum"
UNSET = "0" * 16
"""What stands in a header until, and while, the checksum is taken."""
COMMENT = b"xxh3_64 "
COMMENT_BYTES = len(COMMENT) + len(UNSET)
END_OF_ZIP, END_BYTES, COUNT_BYTES = b"PK\5\6", 22, 2
"""An archive's last record, its size without a comment, and that of the comment's length, last."""
LARGEST_HEADER, CHUNK_BYTES = 1 << 20, 1 << 20
RESTORE = "put it back from a copy, or start anew in another --output_dir"
"""What remains to be done where nothing can be computed again."""


def set_tensors_checksum(path: Path) -> None:
    """Fill in the checksum of a safetensors file whose metadata leaves :data:`UNSET` for it."""
    with path.open("r+b") as opened:
        start = _read_header(opened)
        stored = _checksum(start, opened)
        opened.seek(start.index(UNSET.encode()))
        opened.write(stored.encode())


def check_tensors(path: Path) -> None:
    """Check a safetensors file of :func:`set_tensors_checksum`, without holding it in memory.

    Raises:
        ValueError: if it is missing, damaged or does not match its checksum, with the remedy.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: {RESTORE}")
    with path.open("rb") as opened:
        start = _read_header(opened)
        try:
            metadata = json.loads(start[LENGTH_BYTES:])["__metadata__"]
            stored = metadata.pop(CHECKSUM, None)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            metadata, stored = {}, ""
        if stored is None and metadata == {"format": "pt"}:
            say_unchecked()
            return
        matches = metadata == {"format": "pt"} and isinstance(stored, str)
        start = start.replace(str(stored).encode(), UNSET.encode(), 1)
        if not matches or _checksum(start, opened) != stored:
            raise ValueError(f"{path} is damaged: it does not match its checksum; {RESTORE}")


def set_checkpoint_checksum(path: Path) -> None:
    """Add the checksum to an archive of ``torch.save``, which has no comment."""
    with path.open("r+b") as opened:
        end = path.stat().st_size - COUNT_BYTES
        stored = _checksum(b"", opened, end)
        opened.seek(end)
        opened.write(_comment(stored))


def check_checkpoint(path: Path) -> None:
    """Check a file of :func:`set_checkpoint_checksum`, before anything of it is interpreted.

    Raises:
        ValueError: if it does not match its checksum, with the remedy.
    """
    size = path.stat().st_size
    with path.open("rb") as opened:
        opened.seek(max(0, size - END_BYTES))
        last = opened.read()
        if last.startswith(END_OF_ZIP) and last.endswith(bytes(COUNT_BYTES)):
            say_unchecked()
            return
        end = max(0, size - COUNT_BYTES - COMMENT_BYTES)
        opened.seek(0)
        expected = _comment(_checksum(b"", opened, end))
        opened.seek(end)
        if opened.read() != expected:
            raise ValueError(
                f"{path} is damaged or not a checkpoint of duquant: it does not match its "
                f"checksum; {RESTORE}"
            )


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with their checksum, to be written as JSON."""
    return {**values, CHECKSUM: _values_checksum(values)}


def check_values(values: Any, path: Path) -> dict[str, Any]:
    """Undo :func:`with_checksum`, of what was read at ``path``.

    Raises:
        ValueError: if the values do not match their checksum, naming the file.
    """
    kept = dict(values) if isinstance(values, Mapping) else {CHECKSUM: ""}
    stored = kept.pop(CHECKSUM, None)
    if stored is None:
        say_unchecked()
    elif stored != _values_checksum(kept):
        raise ValueError(f"{path} is damaged: it does not match its checksum")
    return kept


@cache
def say_unchecked() -> None:
    """Say once that files of an earlier release cannot be checked."""
    logging.getLogger(__name__).warning(
        "the run was begun by an earlier release, whose files carry no checksums: they are read "
        "unchecked"
    )


def _checksum(start: bytes, opened: IO[bytes], end: int | None = None) -> str:
    """Checksum of ``start`` and of what follows where ``opened`` stands, up to a file's ``end``."""
    state = xxh3_64(start)
    while chunk := opened.read(
        CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - opened.tell())
    ):
        state.update(chunk)
    return state.hexdigest()


def _values_checksum(values: Mapping[str, Any]) -> str:
    return xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode())


def _comment(stored: str) -> bytes:
    return COMMENT_BYTES.to_bytes(COUNT_BYTES, "little") + COMMENT + stored.encode()


def _read_header(opened: IO[bytes]) -> bytes:
    """The length of a safetensors header, and the header."""
    length = opened.read(LENGTH_BYTES)
    return length + opened.read(min(int.from_bytes(length, "little"), LARGEST_HEADER))
