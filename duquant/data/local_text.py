"""Documents of a local file: plain text, JSON (an array, or an object per line), or Parquet.

Text and JSON may be compressed by gzip or zstd. Whatever is wrong with a file is said in one line
that names it, with the line or row where there is one. JSON is taken apart here and not by a
library that guesses the types of columns: a text that looks like a date stays a text.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from duquant.plain_text import in_one_line

TEXT_COLUMNS = ("text", "content", "sentence", "document", "page")
COLUMNS_SHOWN = 8
Row = dict[str, Any]


def _unpack_zstd(data: bytes) -> bytes:
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd") as opened:
        return bytes(opened.read())


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".zst": _unpack_zstd}


def is_readable(path: Path) -> bool:
    """Whether a file's name ends in something that :func:`read_documents` reads."""
    return _kind(path) is not None


def readable_names() -> str:
    """The endings, for messages."""
    others = ", ".join(name for name in READERS if name not in COMPRESSIBLE)
    return f"{', '.join(COMPRESSIBLE)} (also with {' or '.join(COMPRESSIONS)}), {others}"


def read_documents(path: Path) -> list[str]:
    """All documents of a file, at least one.

    Raises:
        ValueError: if it cannot be read or has no text, naming it.
    """
    kind = _kind(path)
    assert kind is not None, path
    documents = READERS[kind](path)
    if not any(documents):
        raise ValueError(f"{path} is empty: it holds no text")
    for number, text in enumerate(documents, 1):
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
            raise ValueError(f"{path}: the text of row {number} is not valid Unicode") from error
    return documents


def _kind(path: Path) -> str | None:
    """The suffix that says what is in a file, whatever it is compressed by."""
    if path.suffix in COMPRESSIONS:
        inner = path.with_suffix("").suffix
        return inner if inner in COMPRESSIBLE else None
    return path.suffix if path.suffix in READERS else None


def _plain(path: Path) -> list[str]:
    return [_text(path)]


def _json(path: Path) -> list[str]:
    rows = _rows(_text(path).removeprefix("\ufeff"), path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    column = _text_column(columns, path)
    return _strings((row.get(column) for row in rows), column, path)


def _parquet(path: Path) -> list[str]:
    from pyarrow import parquet

    with _said_of(path):
        file = parquet.ParquetFile(path)
        columns = list(file.schema_arrow.names)
    column = _text_column(columns, path)
    with _said_of(path):
        values = file.read(columns=[column]).column(0).to_pylist()
    return _strings(values, column, path)


COMPRESSIBLE: Mapping[str, Callable[[Path], list[str]]] = {
    ".txt": _plain,
    ".json": _json,
    ".jsonl": _json,
}
READERS: Mapping[str, Callable[[Path], list[str]]] = {**COMPRESSIBLE, ".parquet": _parquet}


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Name the file in whatever a library says; every one of them fails in its own way."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {in_one_line(error)}") from error


def _text_column(columns: list[str], path: Path) -> str:
    if not columns:
        raise ValueError(f"{path} is empty: it holds no rows")
    column = next((name for name in TEXT_COLUMNS if name in columns), None)
    if column is None:
        shown = ", ".join(columns[:COLUMNS_SHOWN]) + (", …" if columns[COLUMNS_SHOWN:] else "")
        raise ValueError(
            f"{path} has columns {shown}; the text must be in one of {', '.join(TEXT_COLUMNS)}"
        )
    return column


def _strings(values: Iterable[Any], column: str, path: Path) -> list[str]:
    texts = []
    for number, text in enumerate(values, 1):
        if not isinstance(text, str):
            raise ValueError(f"{path}: {column} of row {number} is not text")
        texts.append(text)
    return texts


def _text(path: Path) -> str:
    """A file's text with line breaks as in memory, unpacked."""
    with _said_of(path):
        data = path.read_bytes()
        unpack = COMPRESSIONS.get(path.suffix)
        data = data if unpack is None else unpack(data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _rows(text: str, path: Path) -> list[Row]:
    """Objects of a JSON array, or one per line; an object alone is one row."""
    lines = [(f"line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and _is_json(lines[0][1]):
        return [_object(_parsed(line, path, f"{place}: "), place, path) for place, line in lines]
    whole = _parsed(text, path, "") if lines else []
    rows = whole if isinstance(whole, list) else [whole]
    return [_object(row, f"row {number}", path) for number, row in enumerate(rows, 1)]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str, path: Path, place: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read: {place}it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {place}{in_one_line(error)}") from error


def _object(value: Any, place: str, path: Path) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {place} is no object with columns")
    return value
