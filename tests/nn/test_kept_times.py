"""Measured times on the disk: read again, never trusted, never needed."""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from duquant.nn import kept_times as module
from duquant.nn.kept_times import kept_times

MEASURED: dict[str, Any] = {"inputs": 64, "threads": 1, "torch": "2.13"}
NAMES = ["packed", "reference"]
TIMES = {name: [[0.25, 0.125]] * 3 for name in NAMES}
OTHERS = {name: [[0.5, 0.5]] * 3 for name in NAMES}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "duquant"


def ask(times: Any = TIMES, measured: dict[str, Any] = MEASURED) -> tuple[Any, int]:
    """What comes back, and how often was measured."""
    calls = []

    def measure() -> Any:
        calls.append(1)
        return times

    return kept_times(measured, NAMES, measure), len(calls)


def the_file(cache: Path) -> Path:
    (file,) = cache.glob("times-*.json")
    return file


@pytest.mark.parametrize("times", [TIMES, {}], ids=["measured", "too busy"])
def test_what_was_measured_is_read_again(times: Any) -> None:
    assert ask(times) == (times, 1)
    assert ask(OTHERS) == (times, 0)


def test_what_lacks_a_candidate_is_measured_the_next_time() -> None:
    """It may have failed because memory was short."""
    lacking = {"packed": TIMES["packed"], "reference": []}
    assert ask(lacking) == (lacking, 1)
    assert ask(TIMES) == (TIMES, 1)
    assert ask(OTHERS) == (TIMES, 0)


@pytest.mark.parametrize("change", [{"threads": 2}, {"torch": "2.14"}, {"inputs": 65}])
def test_another_machine_or_kind_is_measured_by_itself(change: dict[str, Any]) -> None:
    ask()
    assert ask(OTHERS, {**MEASURED, **change}) == (OTHERS, 1)
    assert ask(OTHERS) == (TIMES, 0)


def altered(**changes: Any) -> Any:
    return lambda content: json.dumps({**json.loads(content), **changes})


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: "",
        lambda content: "[]",
        altered(version=0),
        altered(measured={}),
        altered(seconds={"packed": TIMES["packed"]}),
        altered(seconds={**TIMES, "reference": [[0.25, 0.125]]}),
        altered(seconds={**TIMES, "reference": [[0.25]] * 3}),
        altered(seconds={**TIMES, "reference": [[0.25, 0]] * 3}),
        altered(seconds={**TIMES, "reference": [[0.25, -1]] * 3}),
        altered(seconds={**TIMES, "reference": "fast"}),
    ],
)
def test_a_damaged_or_foreign_file_is_replaced(damage: Any, cache: Path) -> None:
    ask()
    file = the_file(cache)
    file.write_text(damage(file.read_text()))
    assert ask(OTHERS) == (OTHERS, 1)
    assert the_file(cache) == file
    assert ask(TIMES) == (OTHERS, 0)


def test_a_directory_in_the_place_of_the_file_stands_in_no_ones_way(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask()
    file = the_file(cache)
    file.unlink()
    file.mkdir()
    with caplog.at_level(logging.INFO):
        assert ask(OTHERS) == (OTHERS, 1)
    assert "measured times are not kept" in caplog.text


def test_without_a_cache_directory_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO):
        assert ask() == (TIMES, 1)
        assert ask(OTHERS) == (OTHERS, 1)
    assert "measured times are not kept" in caplog.text


def test_two_at_once_take_the_same_times(cache: Path) -> None:
    """The second waits for the first and measures nothing."""
    is_measuring, may_end = threading.Event(), threading.Event()

    def slow() -> Any:
        is_measuring.set()
        assert may_end.wait(60)
        return TIMES

    first = threading.Thread(target=lambda: kept_times(MEASURED, NAMES, slow))
    first.start()
    assert is_measuring.wait(60)
    found: list[Any] = []
    second = threading.Thread(target=lambda: found.append(ask(OTHERS)))
    second.start()
    may_end.set()
    first.join()
    second.join()
    assert found == [(TIMES, 0)]


def test_nobody_waits_for_ever(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_WAIT", 0.0)
    with module._alone(cache.parent):
        pass
    ask()
    with module._alone(cache):
        assert ask(OTHERS, {**MEASURED, "threads": 3}) == (OTHERS, 1)
