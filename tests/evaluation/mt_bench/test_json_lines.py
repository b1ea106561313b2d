"""Records survive whatever happens to the process that writes them."""

import errno
import os
from pathlib import Path

import pytest

from duquant.evaluation.mt_bench.json_lines import append_record, read_records, recover_records

TWO = [{"text": "one"}, {"text": "two\u2028lines, ä"}]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "records.jsonl"
    for record in TWO:
        append_record(path, record)
    return path


def test_records_come_back(file: Path) -> None:
    assert [record for _, record in read_records(file)] == TWO
    assert recover_records(file) == TWO


@pytest.mark.parametrize("cut", range(1, 12))
def test_half_a_last_line_is_dropped_and_the_file_goes_on(file: Path, cut: int) -> None:
    file.write_bytes(file.read_bytes()[:-cut])
    expected = TWO if cut == 1 else TWO[:1]  # only the line's end is missing
    assert recover_records(file) == expected
    append_record(file, {"text": "three"})
    assert recover_records(file) == [*expected, {"text": "three"}]


def test_a_missing_file_holds_nothing(tmp_path: Path) -> None:
    assert recover_records(tmp_path / "nowhere.jsonl") == []


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"a": 1}\n\n{"a": \n{"a": 3}\n', "line 3: not JSON"),
        (b'{"a": 1}\n[2]\n', "line 2: not a JSON object"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2: not UTF-8"),
        (b"\n", "is empty"),
    ],
)
def test_damage_is_reported_with_its_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged.jsonl.*{complaint}"):
        read_records(path)


def test_damage_in_the_middle_of_our_own_file_is_reported(file: Path) -> None:
    file.write_bytes(b"oops\n" + file.read_bytes())
    with pytest.raises(ValueError, match="line 1: not JSON"):
        recover_records(file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        read_records(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_names_file_and_remedy(
    file: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"records\.jsonl cannot be written: .*another directory"):
        append_record(file, {"text": "three"})
