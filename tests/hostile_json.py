"""Contents of a JSON file that somebody damaged, or made to do damage."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "spaces": b" \n\t",
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "half": b'{"a": {"b": [1, 2',
    "two values": b"{} {}",
    "nested lists": b"[" * 100_000,
    "nested mappings": b'{"a":' * 1_000 + b"1" + b"}" * 1_000,
    "not a number": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "overflow": b'{"a": 1e999}',
    "endless number": b'{"a": 1' + b"0" * 10_000 + b"}",
    "surrogate": b'{"a": "\\ud800"}',
    "surrogate in a key": b'{"\\udfff": 1}',
    "zeros": bytes(100),
}
"""No JSON value that anybody should take, whatever is expected."""
MISFITS: dict[str, bytes] = {
    "list": b"[]",
    "empty mapping": b"{}",
    "null": b"null",
    "number": b"3",
    "text": b'"a\\nb\\u001b[31mc"',
    "list of lists": b"[[1], [2]]",
}
"""JSON, but no mapping with anything in it."""


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def _circular_link(path: Path) -> None:
    path.symlink_to(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _directory(path: Path) -> None:
    path.mkdir()


NO_FILES: dict[str, Callable[[Path], None]] = {
    "directory": _directory,
    "pipe": _fifo,
    "dangling link": _dangling_link,
    "circular link": _circular_link,
    "device": _device,
}
"""What may stand in a file's place."""


def broken_values(values: Any) -> dict[str, bytes]:
    """A file with one value after the other gone, or of another type, by place and damage."""
    broken = {}
    for place in _places(values):
        for name, wrong in {"null": None, "text": "x", "list": [1], "number": 1e308}.items():
            broken[f"{'.'.join(map(str, place))} is {name}"] = _with(values, place, wrong)
        if isinstance(place[-1], str):
            broken[f"{'.'.join(map(str, place))} is gone"] = _without(values, place)
    return broken


def _places(values: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values; of a list, to the first one."""
    items = values.items() if isinstance(values, dict) else list(enumerate(values))[:1]
    found = []
    for key, value in items:
        found.append((*place, key))
        if isinstance(value, dict | list):
            found += _places(value, (*place, key))
    return found


def _with(values: Any, place: tuple[Any, ...], wrong: Any) -> bytes:
    copied = json.loads(json.dumps(values))
    _holder(copied, place)[place[-1]] = wrong
    return json.dumps(copied).encode()


def _without(values: Any, place: tuple[Any, ...]) -> bytes:
    copied = json.loads(json.dumps(values))
    del _holder(copied, place)[place[-1]]
    return json.dumps(copied).encode()


def _holder(values: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        values = values[key]
    return values
