"""JSON is taken as what it claims to be, or refused in one line that names the file."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from duquant import json_files
from duquant.json_files import DEEPEST, parse_json, read_json
from tests.hostile_json import DAMAGED, MISFITS, NO_FILES
from tests.test_json_shapes import GOOD, VALUES, Point, Record


def refusal(path: Path, shape: Any) -> str:
    with pytest.raises(ValueError, match=r"record\.json") as refused:
        read_json(path, shape)
    message = str(refused.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 200 + len(str(path))
    return message


@pytest.mark.parametrize("case", [*DAMAGED, *MISFITS])
def test_hostile_contents_are_refused_by_name(case: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes({**DAMAGED, **MISFITS}[case])
    assert "is damaged: " in refusal(path, Record)
    if case in DAMAGED:
        refusal(path, Any)


@pytest.mark.parametrize("case", NO_FILES)
def test_what_is_no_file_is_refused_by_name(case: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    NO_FILES[case](path)
    refusal(path, Any)


def test_a_missing_and_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    assert "is missing" in refusal(path, Any)

    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.open", refuse)
    assert "cannot be read: Permission denied" in refusal(path, Any)


def test_a_file_of_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    path.write_text("[1, 2, 3]")
    monkeypatch.setattr(json_files, "MOST_BYTES", 8)
    assert "9 bytes" in refusal(path, Any)


def test_a_remedy_stands_in_the_message(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"must be a mapping, not a list; delete it$"):
        read_json(path, Record, "delete it")


def test_what_fits_comes_back_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").write_text(json.dumps(GOOD), encoding="utf-8")
    path = tmp_path / "record.json"
    path.symlink_to("elsewhere.json")
    assert read_json(path, Record) == {**GOOD, "point": Point(3, ["é"])}
    assert read_json(path) == GOOD


@given(VALUES)
def test_whatever_json_says_comes_back_or_is_refused(values: Any) -> None:
    text = json.dumps(values)
    is_plain = not {"NaN", "Infinity", "-Infinity"}.intersection(text.replace(",", " ").split())
    try:
        parsed = parse_json(text.encode())
    except ValueError as error:
        refused = str(error)
    else:
        assert parsed == values
        return
    assert "\n" not in refused
    assert not is_plain or "surrogate" in refused or "digits" in refused


def test_nesting_has_a_bound() -> None:
    for depth, fits in ((DEEPEST, True), (DEEPEST + 1, False)):
        content = b"[" * depth + b"0" + b"]" * depth
        if fits:
            assert parse_json(content)[0]
        else:
            with pytest.raises(ValueError, match="nested more than"):
                parse_json(content)
