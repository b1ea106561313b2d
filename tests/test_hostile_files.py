"""JSON files of a run, damaged one at a time: a line that names the file, or nothing happens.

Every kind of file is planted with what no parser takes, with other JSON, with one of its own values
after the other gone or of another type, and with what is no file. Then whoever reads it does.
"""

import io
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from callbacks.block_events import BlockRecord
from callbacks.preflight_file import PREFLIGHT_FILE, compare_with_estimate
from callbacks.run_directory import prepare_fit, prepare_validation
from callbacks.run_summary import print_stored_summary
from duquant.atomic_files import write_json
from duquant.data.datamodule import CalibrationDataModule
from duquant.evaluation.command import Evaluate
from duquant.evaluation.loaded_model import ModelSource
from duquant.evaluation.parts import EvaluationDirectory
from duquant.json_files import read_json
from duquant.model.checkpoint import INDEX
from duquant.modules.language_model import LanguageModel
from duquant.reporting.charts import draw_bars, draw_losses
from duquant.reporting.report import report
from duquant.scores.mt_bench import SCORES_FOLDER
from duquant.scores.statistics import Measurement, mean_of
from tests.hostile_json import DAMAGED, MISFITS, NO_FILES, broken_values
from tests.in_process import (
    LIGHTNING_WARNINGS,
    FinishedRun,
    small_data,
    small_language_model,
)
from tests.reporting.test_mt_bench import judged
from tests.reporting.test_report import results

pytestmark = LIGHTNING_WARNINGS
BROKEN_VALUES = 25
"""How many of a file's broken values are tried."""
SETTINGS = {"limit": 2, "seed": 1}


class Victim(NamedTuple):
    """A run that may be damaged, and what reads it."""

    path: Path
    model: LanguageModel
    data: CalibrationDataModule

    def report(self) -> None:
        report([str(self.path)], str(self.path.parent))

    def continue_fit(self) -> None:
        prepare_fit(self.model, self.data, "last")

    def repeat_fit(self) -> None:
        print_stored_summary(self.path, self.data, Console(file=io.StringIO()))

    def validate(self) -> None:
        prepare_validation(self.model, self.data)

    def summarize(self) -> None:
        BlockRecord.load_all(self.path, 2)
        compare_with_estimate(self.path, memory=1, calibration=1.0, validation=1.0)

    def evaluate(self) -> None:
        request = Evaluate(run=str(self.path), tasks="any")
        source = ModelSource.find(request.source)
        assert source.label
        assert source.max_length
        directory = EvaluationDirectory(request.output)
        directory.part("task", SETTINGS, measure)
        decisive = {"model": 1, "compared": None, "parts": {}}
        directory.write_results("x", {**results(), "evaluated": decisive})


def measure() -> Measurement:
    return Measurement("task", "1", 0, 2, 2, {"acc": mean_of([0.0, 1.0])}, log_likelihoods=[[-1.0]])


READERS: dict[str, tuple[str, Callable[[Victim], None]]] = {
    "summary of a report": ("summary.json", Victim.report),
    "summary of a finished run": ("summary.json", Victim.repeat_fit),
    "validation": ("validation.json", Victim.report),
    "description, fit": ("run.json", Victim.continue_fit),
    "description, validate": ("run.json", Victim.validate),
    "block record": ("blocks/block_00001.json", Victim.summarize),
    "estimate": (PREFLIGHT_FILE, Victim.summarize),
    "results of a report": ("evaluation/results/20.json", Victim.report),
    "results of an evaluation": ("evaluation/results/20.json", Victim.evaluate),
    "part": ("evaluation/parts/", Victim.evaluate),
    "scores": (f"{SCORES_FOLDER}/gpt-4.json", Victim.report),
    "model config": ("model/config.json", Victim.evaluate),
    "index of a report": (f"model/{INDEX}", Victim.report),
    "index of a model": (f"model/{INDEX}", Victim.evaluate),
}
"""Which file is damaged, and who reads it."""


@pytest.fixture(scope="module")
def victim(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """A finished run that was measured again, evaluated, and judged."""
    path = tmp_path_factory.mktemp("victim") / "run"
    shutil.copytree(finished_run.output, path)
    shutil.copy(path / "summary.json", path / "validation.json")
    write_json(path / "evaluation" / "results" / "20.json", results())
    write_json(path / SCORES_FOLDER / "gpt-4.json", judged("run", "full"))
    EvaluationDirectory(path / "other").part("task", SETTINGS, measure)
    (path / "other" / "parts").rename(path / "evaluation" / "parts")
    (path / "other").rmdir()
    model = small_language_model(finished_run.source, path)
    return Victim(path, model, small_data(finished_run.source, finished_run.text))


def outcome(victim: Victim, file: Path, read: Callable[[Victim], None]) -> str:
    """Which file was refused, or harmless; whatever else is raised comes through."""
    try:
        read(victim)
    except ValueError as error:
        message = str(error)
        assert str(victim.path) in message
        assert "\n" not in message
        assert len(message) < 400 + len(str(file)), message
        return "refused" if file.name in message else "refused for what it says"
    return "harmless"


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_named_or_harmless(
    kind: str, victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duquant.reporting.report.draw_bars", lambda *_: "")  # tested below
    monkeypatch.setattr("duquant.reporting.report.draw_losses", lambda *_: "")
    name, read = READERS[kind]
    file = victim.path / name if not name.endswith("/") else next((victim.path / name).iterdir())
    kept = file.with_name(f"{file.name}.kept")
    broken = broken_values(read_json(file))
    chosen = random.Random(0).sample(sorted(broken), min(BROKEN_VALUES, len(broken)))
    contents = {**DAMAGED, **MISFITS, **{case: broken[case] for case in chosen}}
    outcomes = {}
    file.rename(kept)
    try:
        for case, content in contents.items():
            file.write_bytes(content)
            outcomes[case] = outcome(victim, file, read)
            file.unlink()
        for case, plant in NO_FILES.items():
            plant(file)
            outcomes[case] = outcome(victim, file, read)
            shutil.rmtree(file) if case == "directory" else file.unlink(missing_ok=True)
    finally:
        kept.replace(file)
    print(kind, len(outcomes), Counter(outcomes.values()))
    assert all(outcomes[case] == "refused" for case in (*DAMAGED, *MISFITS)), outcomes
    assert outcome(victim, file, read) == "harmless"


@pytest.mark.parametrize("value", [1e308, 1e-308, 0.0])
def test_charts_of_any_number(value: float) -> None:
    for values in ([value, -1.0], [1.0, -value]):
        assert "<svg" in draw_bars(values, "seconds", "of every block")
        assert "<svg" in draw_losses({"block 0": values}, "of a block")


def test_results_whose_parts_do_not_belong_together(victim: Victim) -> None:
    """Whole tasks and corpora missing on one side, which no type tells."""
    file, good = victim.path / "evaluation" / "results" / "20.json", results()
    changes: list[tuple[str, dict[str, Any]]] = [
        ("label", {"labels": ["W4A4"]}),
        ("label", {"labels": ["a", "b", "c"]}),
        ("both models", {"compared_results": {}}),
        ("both models", {"differences": {"arc_easy": {}}}),
        ("source of wikitext2", {"request": {"limit": 20}}),
        ("perplexity of c4", {"request": {"perplexity": {"c4": "c4"}}, "protocols": {"c4": "x"}}),
    ]
    try:
        for complaint, change in changes:
            write_json(file, {**good, **change})
            with pytest.raises(ValueError, match=rf"20\.json is damaged: it has no .*{complaint}"):
                victim.report()
    finally:
        write_json(file, good)
