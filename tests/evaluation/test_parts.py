"""An evaluation's directory: finished parts are kept, others' directories left alone."""

from pathlib import Path

import pytest

from duquant.evaluation.parts import EvaluationDirectory
from duquant.evaluation.statistics import Measurement, mean_of

ABOUT = {"model": {"weights": "abc"}, "limit": 20}


def measured(name: str = "task") -> Measurement:
    return Measurement(name, "1.0", 0, 2, 2, {"acc": mean_of([0.0, 1.0])})


def test_a_part_is_measured_once(tmp_path: Path) -> None:
    directory, calls = EvaluationDirectory(tmp_path / "out", ABOUT), []

    def measure() -> Measurement:
        calls.append(1)
        return measured()

    assert not directory.has("model", "a/b")
    first = directory.part("model", "a/b", measure)
    again = EvaluationDirectory(tmp_path / "out2", ABOUT)
    assert not again.has("model", "a/b")
    assert directory.part("model", "a/b", measure) == first == measured()
    assert len(calls) == 1
    assert not directory.has("compared", "a/b")


def test_an_interrupted_part_leaves_nothing(tmp_path: Path) -> None:
    directory = EvaluationDirectory(tmp_path / "out", ABOUT)

    def interrupted() -> Measurement:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        directory.part("model", "task", interrupted)
    assert not (tmp_path / "out").exists()


def test_another_evaluation_is_refused(tmp_path: Path) -> None:
    EvaluationDirectory(tmp_path, ABOUT).claim()
    EvaluationDirectory(tmp_path, ABOUT)
    with pytest.raises(ValueError, match=r"another evaluation \(limit was 20, now 50\)"):
        EvaluationDirectory(tmp_path, {**ABOUT, "limit": 50})


def test_other_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    for path in (tmp_path, tmp_path / "letter.txt"):
        with pytest.raises(ValueError, match="is not empty and no evaluation"):
            EvaluationDirectory(path, ABOUT)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    directory = EvaluationDirectory(tmp_path, ABOUT)
    directory.part("model", "task", measured)
    file = tmp_path / "parts" / "model" / "task.json"
    for content in ("{}", "[]", '{"metrics": {"acc": {}}}', "{"):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"task\.json is damaged"):
            directory.part("model", "task", measured)
