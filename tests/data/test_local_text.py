"""Local files: every form of the same documents, and many that are damaged or something else."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from duquant.data.local_text import COMPRESSIBLE, COMPRESSIONS, is_readable, read_documents

DOCUMENTS = ["The first document.", "Line\u2028separators, äöü, 𝄞.", "2020-01-01", ""]


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as opened:
        opened.write(data)
    return bytes(sink.getvalue().to_pybytes())


PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
ROWS = [{"id": number, "text": text} for number, text in enumerate(DOCUMENTS)]
FORMS = {
    "lines": (".jsonl", "\n".join(json.dumps(row) for row in ROWS)),
    "lines called json": (".json", "\n".join(json.dumps(row) for row in ROWS) + "\n"),
    "raw signs": (".jsonl", "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)),
    "breaks of Windows": (".jsonl", "\r\n".join(json.dumps(row) for row in ROWS) + "\r\n"),
    "array": (".json", json.dumps(ROWS)),
    "array over lines": (".json", json.dumps(ROWS, indent=2)),
    "a byte order mark": (".json", "\ufeff" + json.dumps(ROWS)),
    "other columns first": (".jsonl", "\n".join(json.dumps({"page": "x", **r}) for r in ROWS)),
}


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("form", FORMS)
def test_the_same_documents(form: str, compression: str, tmp_path: Path) -> None:
    suffix, text = FORMS[form]
    path = tmp_path / f"corpus{suffix}{compression}"
    path.write_bytes(PACK[compression](text.encode()))
    assert is_readable(path)
    assert read_documents(path) == DOCUMENTS


@pytest.mark.parametrize("compression", PACK)
def test_plain_text(compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"corpus.txt{compression}"
    path.write_bytes(PACK[compression]("one\r\ntwo äöü\n".encode()))
    assert read_documents(path) == ["one\ntwo äöü\n"]


def test_packed_in_several_chunks(tmp_path: Path) -> None:
    for compression, pack in PACK.items():
        path = tmp_path / f"corpus.txt{compression}"
        path.write_bytes(pack(b"one, ") + pack(b"two"))
        assert read_documents(path) == ["one, two"]


def test_an_object_alone_and_one_long_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps({"text": "alone", "more": [1, 2]}, indent=1))
    assert read_documents(path) == ["alone"]
    long = "word " * 400_000
    path.write_text(json.dumps({"text": long}))
    assert read_documents(path) == [long]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert read_documents(path) == DOCUMENTS


def deep(levels: int) -> str:
    return '{"text": ' + "[" * levels + "]" * levels + "}"


HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "no byte, lines": ("jsonl", b"", "is empty: it holds no rows"),
    "no byte, json": ("json", b"", "is empty: it holds no rows"),
    "no byte, text": ("txt", b"", "is empty: it holds no text"),
    "no byte, parquet": ("parquet", b"", "cannot be read: "),
    "no byte, packed": ("jsonl.gz", b"", "is empty"),
    "nothing, packed": ("jsonl.gz", gzip.compress(b""), "is empty"),
    "blank lines": ("jsonl", b"\n \n\t\n", "is empty: it holds no rows"),
    "no rows": ("json", b"[]", "is empty: it holds no rows"),
    "rows of nothing": ("jsonl", b"{}\n{}\n", "is empty: it holds no rows"),
    "texts of nothing": ("jsonl", b'{"text": ""}\n', "is empty: it holds no text"),
    "binary text": ("txt", bytes(range(256)) * 4, "is not UTF-8 text: invalid start byte"),
    "binary lines": ("jsonl", bytes(range(128, 256)), "is not UTF-8 text"),
    "binary parquet": ("parquet", bytes(range(256)) * 4, "cannot be read: "),
    "not packed": ("txt.gz", b"plain", "cannot be read: "),
    "not packed, zstd": ("txt.zst", b"plain", "cannot be read: "),
    "half, gzip": ("txt.gz", gzip.compress(b"some text " * 99)[:-9], "cannot be read: "),
    "half, zstd": ("txt.zst", zstd(b"some text " * 99)[:-3], "cannot be read: "),
    "gzip called zstd": ("txt.zst", gzip.compress(b"text"), "cannot be read: "),
    "packed binary": ("jsonl.gz", gzip.compress(b"\xff\xfe"), "is not UTF-8 text"),
    "no column": ("jsonl", b'{"poem": "x", "id": 1}\n', "has columns poem, id; the text must be"),
    "many columns": ("json", json.dumps([{f"c{n}": n for n in range(99)}]).encode(), "c7, …;"),
    "a number": ("jsonl", b'{"text": "x"}\n\n{"text": 5}\n', "text of row 2 is not text"),
    "null": ("jsonl", b'{"text": null}\n', "text of row 1 is not text"),
    "a list": ("jsonl", b'{"text": ["x"]}\n', "text of row 1 is not text"),
    "a row without": ("jsonl", b'{"text": "x"}\n{"id": 1}\n', "text of row 2 is not text"),
    "numbers in lines": ("jsonl", b"1\n2\n", "line 1 is no object with columns"),
    "a string": ("json", b'"text"', "row 1 is no object with columns"),
    "a list of texts": ("json", b'["x", "y"]', "row 1 is no object with columns"),
    "half a line": ("jsonl", b'{"text": "x"}\n\n{"text": "y', "cannot be read: line 3: "),
    "half an array": ("json", b'[{"text": "x"},', "cannot be read: "),
    "not JSON": ("jsonl", b"text\nmore\n", "cannot be read: "),
    "deep": ("jsonl", deep(200_000).encode(), "cannot be read: it is nested too deeply"),
    "deep, line 2": ("jsonl", f'{{"text": "x"}}\n{deep(200_000)}'.encode(), "line 2: it is nested"),
    "a number of many digits": ("jsonl", b'{"text": ' + b"1" * 9999 + b"}", "cannot be read: "),
    "half a surrogate": ("jsonl", b'{"text": "\\ud800"}', "row 1 is not valid Unicode"),
    "half a surrogate, later": (
        "jsonl",
        b'{"text": "x"}\n{"text": "y\\udfff"}',
        "row 2 is not valid Unicode",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_line_that_names_it(kind: str, tmp_path: Path) -> None:
    suffix, content, words = HOSTILE[kind]
    path = tmp_path / f"corpus.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="corpus") as refused:
        read_documents(path)
    said = str(refused.value)
    assert said.startswith(str(path))
    assert words in said
    assert "\n" not in said
    assert len(said) < 400 + len(str(path))


@pytest.mark.parametrize(
    "column", [[1, 2], [None, "x"], [["x"], ["y"]], [{"a": "x"}, {"a": "y"}], [b"x", b"y"]]
)
def test_parquet_of_other_types(column: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    parquet.write_table(pyarrow.table({"text": column}), path)
    with pytest.raises(ValueError, match=r"corpus\.parquet: text of row 1 is not text"):
        read_documents(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json.gz", "txt.gz", "parquet"])
def test_damaged_bytes_are_refused_or_read(suffix: str, tmp_path: Path) -> None:
    """Whatever a flipped bit makes of a file, it is text or one line about it."""
    path = tmp_path / f"corpus.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        text = "\n".join(json.dumps(row) for row in ROWS).encode()
        path.write_bytes(PACK[".gz" if suffix.endswith("gz") else ""](text))
    content, chance, refused = path.read_bytes(), random.Random(0), list[str]()
    for _ in range(150):
        damaged = bytearray(content)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            assert all(isinstance(text, str) for text in read_documents(path))
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all(said.startswith(str(path)) and "\n" not in said for said in refused)


def test_names_that_are_read() -> None:
    names = [f"a{suffix}{packed}" for suffix in COMPRESSIBLE for packed in ("", *COMPRESSIONS)]
    assert all(is_readable(Path(name)) for name in [*names, "a.parquet", "a.b.jsonl.gz"])
    for name in (
        "a",
        "a.gz",
        "a.csv",
        "a.parquet.gz",
        "a.txt.zip",
        "a.tar.gz",
        ".gz",
        "a.txt.gz.gz",
    ):
        assert not is_readable(Path(name)), name
