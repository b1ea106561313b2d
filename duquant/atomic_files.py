"""Durable files: written under a temporary name, flushed to disk, then renamed.

A rename is atomic, so a reader (a resumed run, another process) finds the old file or the new one,
never half of either, whatever moment the power goes. Temporary files of a killed writer are
overwritten by the next one, because their names do not change.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from duquant.write_errors import naming

LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, little-endian."""


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` produce a file at a temporary path, then put it at ``path`` in one step.

    What ``write`` returns is of no interest, so any writer of a library will do.

    Raises:
        CannotWriteError: naming ``path``, the reason and a remedy.
    """
    with naming(path, partial(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial(path))
        publish(path)


def partial(path: Path) -> Path:
    """Where a file is written before it is ``path``."""
    return path.with_name(f".{path.name}.partial")


def publish(path: Path) -> None:
    """Put the finished temporary file of ``path`` in its place, in one step."""
    temporary = partial(path)
    with temporary.open("rb") as opened:
        os.fsync(opened.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_text(path: Path, text: str) -> None:
    """Write text, durably."""
    write_durably(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, durably.

    Raises:
        ValueError: if a number is not finite, which JSON cannot say, naming its place.
    """
    place = next(_places_not_finite(value), None)
    if place is not None:
        raise ValueError(f"{path} cannot be written: {place} is no finite number")
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _places_not_finite(value: Any, place: str = "") -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place} ({value})"
    items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else ()
    items = enumerate(value) if isinstance(value, list | tuple) else items
    for key, inner in items:
        yield from _places_not_finite(inner, f"{place}.{key}" if place else str(key))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors, durably; equal tensors and metadata give equal files."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    marked = {"format": "pt", **(metadata or {})}

    def write(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(contiguous, temporary, metadata=marked)
        temporary.chmod(mode)  # safetensors makes its files unreadable for others
        _sort_metadata(temporary)

    write_durably(path, write)


def _sort_metadata(path: Path) -> None:
    """Put a file's metadata in order, which safetensors leaves to chance."""
    with path.open("r+b") as opened:
        length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(encoded) <= length
        opened.seek(LENGTH_BYTES)
        opened.write(encoded.ljust(length))
