"""JSON lines: files of one record per line, which only ever grow.

A record that took a minute or a payment must survive whatever comes next, so it is flushed to disk
before the next one is begun. A process killed while it writes leaves half a line at the end: that
half is dropped when the file is opened again. Damage anywhere else is not ours, and is reported.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from duquant.atomic_files import write_durably
from duquant.write_errors import naming

Record = dict[str, Any]


def read_records(path: Path) -> list[tuple[int, Record]]:
    """Every record of a file with its line number, from 1; blank lines are skipped.

    Raises:
        ValueError: if the file is missing or empty, or a line is no JSON object, naming the line.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    lines = [line for line in enumerate(_text_lines(path), start=1) if line[1].strip()]
    if not lines:
        raise ValueError(f"{path} is empty")
    return [(number, _parse(path, number, line)) for number, line in lines]


def recover_records(path: Path) -> list[Record]:
    """Records of a file that we append to; half a line at its end is cut off the file.

    Returns:
        The records, none if there is no file yet.

    Raises:
        ValueError: if a line before the last is damaged.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole, _, rest = content.rpartition(b"\n")
    records = [
        _parse(path, number, line)
        for number, line in enumerate(_decode(path, whole).split("\n"), start=1)
        if line.strip()
    ]
    if rest:
        with contextlib.suppress(ValueError):
            records.append(_parse(path, 0, rest.decode()))
        rewrite_records(path, records)
    return records


def append_record(path: Path, record: Record) -> None:
    """Add a record and wait until it is on disk.

    Raises:
        CannotWriteError: naming the file, and what helps.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, _line(record))


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def rewrite_records(path: Path, records: Iterable[Record]) -> None:
    """Replace a file in one step."""
    content = b"".join(map(_line, records))

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_durably(path, write)


def _line(record: Record) -> bytes:
    try:
        return (json.dumps(record, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can write
        return (json.dumps(record) + "\n").encode()


def _text_lines(path: Path) -> list[str]:
    # Not splitlines(): texts may hold other line separators, which JSON does not escape.
    return _decode(path, path.read_bytes()).split("\n")


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text") from error


def _parse(path: Path, number: int, line: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from error
    except ValueError:
        raise ValueError(f"{path}, line {number}: a number has thousands of digits") from None
    except RecursionError:
        raise ValueError(f"{path}, line {number}: nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line {number}: not a JSON object")
    return record
