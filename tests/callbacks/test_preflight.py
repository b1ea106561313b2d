"""What a run says before it begins, and what it keeps of that."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from callbacks.block_progression import BlockProgression
from callbacks.preflight import Preflight, describe_job, held_bytes
from callbacks.preflight_file import compare_with_estimate
from duquant.preflight.duration import Duration
from duquant.preflight.memory import memory_phases
from tests.in_process import (
    LEARNS_ALL,
    LIGHTNING_WARNINGS,
    NO_LWC,
    FinishedRun,
    small_data,
    small_language_model,
    small_trainer,
    write_text,
)
from tests.small_run import write_small_model

pytestmark = LIGHTNING_WARNINGS


def test_the_summary_has_estimates_beside_measurements(finished_run: FinishedRun) -> None:
    summary = json.loads((finished_run.output / "summary.json").read_text())
    pairs = summary["preflight"]
    assert set(pairs) == {
        "memory_bytes", "disk_bytes", "calibration_seconds", "validation_seconds",
    }  # fmt: skip
    assert all(pair["estimate"] > 0 and pair["measured"] > 0 for pair in pairs.values())
    assert pairs["calibration_seconds"]["measured"] == summary["seconds"]["total"]
    assert pairs["disk_bytes"]["measured"] <= pairs["disk_bytes"]["estimate"]


def test_nothing_was_expected_of_a_run_without_preflight(tmp_path: Path) -> None:
    assert compare_with_estimate(tmp_path, memory=1, calibration=1.0, validation=1.0) == {}


def test_it_says_what_is_left_and_keeps_what_it_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_small_model(tmp_path / "source", blocks=2)
    data = small_data(source, write_text(tmp_path / "text.txt"))
    asked: list[int] = []

    def estimate(job: object, device: torch.device, **options: float) -> Duration:
        asked.append(int(options["blocks_left"]))
        return Duration(4.25, 4.25 * options["blocks_left"], 65.0)

    monkeypatch.setattr("callbacks.preflight.estimate_duration", estimate)
    printed = io.StringIO()
    for begun in (0, 1):
        model = small_language_model(source, tmp_path / "run", lwc=NO_LWC)
        model.block_index = begun
        preflight = Preflight(tmp_path / "run", Console(file=printed, width=100))
        trainer = small_trainer(preflight)
        trainer.datamodule = data  # type: ignore[attr-defined]
        preflight.on_fit_start(trainer, model)
    assert asked == [2, 1]
    first, time, _, again = printed.getvalue().splitlines()
    for words in ("memory: about", "are available", "disk: about"):
        assert words in first
    assert time == "time: about 0:08 to calibrate (4.2 s per block), 1:05 to measure"
    assert again == "time: about 0:04 to calibrate (4.2 s per block), 1:05 to measure"
    kept = json.loads((tmp_path / "run" / "preflight.json").read_text())
    assert kept["estimate"]["seconds"]["calibration"] == 8.5


def test_streams_lie_where_the_estimate_says(tmp_path: Path) -> None:
    source = write_small_model(tmp_path / "source", blocks=1)
    text = write_text(tmp_path / "text.txt")
    model = small_language_model(source, tmp_path / "run")
    for budget, in_memory in ((None, True), (0.0, False)):
        data = small_data(source, text, stream_memory_gb=budget)
        assert describe_job(model, data).streams_in_memory == in_memory
        trainer = small_trainer(BlockProgression())
        trainer.datamodule = data  # type: ignore[attr-defined]
        (progression,) = (c for c in trainer.callbacks if isinstance(c, BlockProgression))  # type: ignore[attr-defined]
        progression.setup(trainer, model, "fit")
        drafted = progression.files.streams.draft(0).full_precision
        assert isinstance(drafted, torch.Tensor) == in_memory


def test_training_transforms_is_timed_and_takes_more_memory(tmp_path: Path) -> None:
    source = write_small_model(tmp_path / "source", blocks=1)
    data = small_data(source, write_text(tmp_path / "text.txt"))
    plain = {**LEARNS_ALL, "rotation": replace(LEARNS_ALL["rotation"], transform="rotate_permute")}
    memory = []
    for name, options in (("learned", LEARNS_ALL), ("plain", plain)):
        model = small_language_model(source, tmp_path / name, **options)
        preflight = Preflight(tmp_path / name, Console(file=io.StringIO()))
        trainer = small_trainer(preflight)
        trainer.datamodule = data  # type: ignore[attr-defined]
        preflight.on_fit_start(trainer, model)
        estimate = json.loads((tmp_path / name / "preflight.json").read_text())["estimate"]
        assert estimate["seconds"]["calibration"] > 0
        phases = {p.name: p.num_bytes for p in memory_phases(describe_job(model, data))}
        memory.append(phases["training"])
    assert memory[0] > memory[1]


def test_a_directory_that_changes_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread puts a picture in its place between two questions."""
    (tmp_path / "kept").write_bytes(bytes(10))
    (tmp_path / ".picture.partial").write_bytes(bytes(5))

    def is_file(path: Path) -> bool:
        if path.name.endswith(".partial"):
            path.unlink()
        return True

    monkeypatch.setattr(Path, "is_file", is_file)
    assert held_bytes(tmp_path) == 10
