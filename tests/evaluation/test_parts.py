"""An evaluation's directory: parts are kept by their settings, others' directories left alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from duquant.atomic_files import write_json
from duquant.evaluation.parts import EvaluationDirectory, cover
from duquant.scores.statistics import Measurement, mean_of

SETTINGS: dict[str, Any] = {"model": {"weights": "abc"}, "limit": 20, "seed": 1}


def measured(name: str = "task") -> Measurement:
    return Measurement(name, "1.0", 0, 2, 2, {"acc": mean_of([0.0, 1.0])})


def test_a_part_is_measured_once(tmp_path: Path) -> None:
    directory, calls = EvaluationDirectory(tmp_path / "out"), []

    def measure() -> Measurement:
        calls.append(1)
        return measured()

    assert not directory.has("a/b", SETTINGS)
    first = directory.part("a/b", SETTINGS, measure)
    again = EvaluationDirectory(tmp_path / "out")
    assert again.has("a/b", SETTINGS)
    assert again.part("a/b", SETTINGS, measure) == first == measured()
    assert len(calls) == 1


@pytest.mark.parametrize("change", [{"limit": None}, {"seed": 2}, {"model": {"weights": "abd"}}])
def test_other_settings_are_another_part(tmp_path: Path, change: dict[str, Any]) -> None:
    directory = EvaluationDirectory(tmp_path)
    directory.part("task", SETTINGS, measured)
    assert not directory.has("task", {**SETTINGS, **change})


def test_an_interrupted_part_leaves_nothing(tmp_path: Path) -> None:
    directory = EvaluationDirectory(tmp_path / "out")

    def interrupted() -> Measurement:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        directory.part("task", SETTINGS, interrupted)
    assert not (tmp_path / "out").exists()


def test_other_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    for path in (tmp_path, tmp_path / "letter.txt"):
        with pytest.raises(ValueError, match="is not empty and no evaluation"):
            EvaluationDirectory(path)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    directory = EvaluationDirectory(tmp_path)
    directory.part("task", SETTINGS, measured)
    (file,) = (tmp_path / "parts").iterdir()
    stored = json.loads(file.read_text())
    for content in ("{}", "[]", json.dumps({**stored, "measured": {"metrics": {"acc": {}}}}), "{"):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"task-\w+\.json is damaged"):
            directory.part("task", SETTINGS, measured)
    file.write_text(json.dumps({**stored, "settings": {**SETTINGS, "seed": 3}}))
    with pytest.raises(ValueError, match="other settings than its name says"):
        directory.part("task", SETTINGS, measured)


def evaluated(compared: Any = None, **limits: int | None) -> dict[str, Any]:
    parts = {name: {"limit": limit, "seed": 1} for name, limit in limits.items()}
    return {"model": "abc", "compared": compared, "parts": parts}


@pytest.mark.parametrize(
    ("new", "old", "is_covered"),
    [
        (evaluated(a=20), evaluated(a=20), True),
        (evaluated(a=None), evaluated(a=20), True),
        (evaluated(a=30), evaluated(a=20), True),
        (evaluated(a=20), evaluated(a=30), False),
        (evaluated(a=20), evaluated(a=None), False),
        (evaluated(a=None), evaluated(a=None, b=None), False),
        (evaluated(a=None, b=None), evaluated(a=None), True),
        (evaluated("full", a=None), evaluated(a=20), True),
        (evaluated(a=None), evaluated("full", a=20), False),
        (evaluated("full", a=None), evaluated("other", a=20), False),
        ({**evaluated(a=None), "model": "abd"}, evaluated(a=20), False),
        (evaluated(a=None), {}, False),
    ],
)
def test_what_covers_what(new: dict[str, Any], old: dict[str, Any], is_covered: bool) -> None:
    assert cover(new, old) is is_covered


def test_other_seeds_cover_nothing() -> None:
    new = evaluated(a=None)
    new["parts"]["a"]["seed"] = 2
    assert not cover(new, evaluated(a=20))


def test_an_edited_task_covers_itself() -> None:
    new, old = evaluated(a=None), evaluated(a=20)
    new["parts"]["a"] |= {"definition": "1f", "version": "2.0"}
    old["parts"]["a"] |= {"definition": "2f", "version": "1.0"}
    assert cover(new, old)


def test_a_digit_that_flipped_is_no_number(tmp_path: Path) -> None:
    directory = EvaluationDirectory(tmp_path)
    directory.part("task", SETTINGS, measured)
    (file,) = (tmp_path / "parts").iterdir()
    text = file.read_text()
    places = [i for i, sign in enumerate(text) if sign.isdigit() and text[i - 1] not in "-e"]
    for place in places:
        file.write_text(f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}")
        with pytest.raises(ValueError, match=r"task-\w+\.json"):
            directory.part("task", SETTINGS, measured)
    stored = json.loads(text)
    del stored["checksum"]  # as earlier releases wrote it
    file.write_text(json.dumps(stored))
    assert directory.part("task", SETTINGS, measured) == measured()


def test_a_part_of_an_earlier_release_is_found_by_the_samples_of_its_model(tmp_path: Path) -> None:
    directory, model = EvaluationDirectory(tmp_path), {"weights": "abc", "content": "def"}
    settings = {"limit": 20, "seed": 1}
    assert directory.key("task", model, settings) == {"model": model, **settings}
    old = {"model": {"weights": "abc"}, **settings}
    write_json(directory._part("task", old), {})
    assert directory.key("task", model, settings) == old
    assert directory.key("task", {**model, "weights": "x"}, settings)["model"]["content"] == "def"
