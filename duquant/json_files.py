"""JSON files that somebody else may have written: read whole, checked, refused by name.

What a parser takes and the rest of a program stumbles over is refused at once, whatever is
expected: anything but a regular file, too much of it, text that is not UTF-8, ``NaN`` and
``Infinity``, nesting without end, halves of surrogate pairs. What is expected is a type, see
:mod:`duquant.json_shapes`.
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar, overload

from duquant.json_shapes import shaped

T = TypeVar("T")
MOST_BYTES = 1 << 28
"""Far more than any file of ours or any index of a model."""
DEEPEST = 64
"""Brackets within brackets."""
MOST_DIGITS = 100


@overload
def read_json(path: Path) -> Any: ...
@overload
def read_json(path: Path, shape: type[T], remedy: str = "") -> T: ...
def read_json(path: Path, shape: Any = Any, remedy: str = "") -> Any:
    """Read a JSON file.

    Args:
        path: the file; a link to one will do.
        shape: the type its values must have, see :mod:`duquant.json_shapes`.
        remedy: what helps if the file is damaged, for the message.

    Raises:
        ValueError: in one line, if it is missing, no file, unreadable, damaged or of another shape,
            naming it.
    """
    content = _read(path)
    try:
        return shaped(parse_json(content), shape)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}{remedy and f'; {remedy}'}") from error


def parse_json(content: bytes) -> Any:
    """Parse the bytes of one JSON value.

    Raises:
        ValueError: saying what is wrong with it, in one line.
    """
    try:
        text = content.decode("utf-8")
        values = json.loads(text, parse_constant=_refuse, parse_int=_parse_integer)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"it is not JSON ({error})" if content.strip() else "it is empty"
        ) from error
    for value in _keys_and_values(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("it holds a number beyond every limit")
        if isinstance(value, str) and not value.isascii() and not _is_unicode(value):
            raise ValueError("it holds half a surrogate pair, which is no character")
    return values


def _read(path: Path) -> bytes:
    """All bytes of a regular file; a pipe without a writer would wait for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise ValueError(f"{path} is a directory; a JSON file is expected")
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is not a regular file")
            if status.st_size > MOST_BYTES:
                raise ValueError(f"{path} is damaged: it has {status.st_size} bytes")
            with open(descriptor, "rb", closefd=False) as opened:
                return opened.read(MOST_BYTES)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        broken = ": it is a link to nothing" if path.is_symlink() else ""
        raise ValueError(f"{path} is missing{broken}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}, which is no number")


def _parse_integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _keys_and_values(values: Any) -> Iterator[Any]:
    """Everything in parsed values that holds nothing else.

    Raises:
        ValueError: if they are nested too deep.
    """
    layer = [values]
    for _ in range(DEEPEST + 1):
        below: list[Any] = []
        for value in layer:
            if isinstance(value, list):
                below += value
            elif isinstance(value, dict):
                yield from value
                below += value.values()
            else:
                yield value
        if not below:
            return
        layer = below
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
