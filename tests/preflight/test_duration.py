"""Estimates of time: what they depend on, and that they come close."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.preflight import describe_job
from duquant.config import LWCConfig
from duquant.data.datamodule import CalibrationDataModule
from duquant.modules.language_model import LanguageModel
from duquant.preflight import duration
from duquant.preflight.duration import BlockSeconds, Duration, estimate_duration
from duquant.preflight.job import Job
from tests.in_process import NO_LWC, small_data, small_language_model, write_text
from tests.small_run import write_small_model

CPU = torch.device("cpu")
PART = BlockSeconds(
    load=1.0, forward=0.01, quantized=0.02, transform=3.0, search_step=0.5, step=7.0,
    store=2.0, restore=4.0, weights=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("source"), blocks=3)


def job(source: Path, tmp_path: Path, **options: Any) -> Job:
    data: CalibrationDataModule = small_data(source, write_text(tmp_path / "text.txt"))
    model: LanguageModel = small_language_model(source, tmp_path / "run", **options)
    return describe_job(model, data)


def estimate(
    asked: Job, monkeypatch: pytest.MonkeyPatch, *, blocks_left: int = 3, size: int = 1
) -> Duration:
    """Of a machine on which every part of a block ``size`` times smaller takes what PART says."""
    part = replace(PART, weights=asked.block_weights // size)
    monkeypatch.setattr(duration._Probe, "measure", lambda self: part)
    return estimate_duration(asked, CPU, blocks_left=blocks_left, picture_seconds=0.25)


def test_parts_are_multiplied_by_how_often_they_happen(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(job(source, tmp_path, lwc=LWCConfig(epochs=3)), batch_size=3)
    tokens, steps = 8 * 32, 3 * 3
    compared = 0.02 * tokens  # fewer samples than are probed at most
    once = 1 + 0.01 * tokens + 3 + 2 + compared + 8 * 32 * 0.5 + 0.25
    expected = once + 0.02 * tokens + 7 * steps
    found = estimate(asked, monkeypatch)
    assert found.per_block == pytest.approx(expected)
    assert found.calibration == pytest.approx(3 * expected)
    assert estimate(asked, monkeypatch, blocks_left=1).calibration == pytest.approx(expected)
    plain = estimate(job(source, tmp_path, lwc=NO_LWC), monkeypatch)
    assert plain.per_block == pytest.approx(once)


def test_a_search_grows_with_the_width_and_the_rest_with_the_weights(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = job(source, tmp_path, lwc=NO_LWC)
    found = estimate(asked, monkeypatch, size=4).per_block
    assert found == pytest.approx(4 * (1 + 0.03 * 8 * 32 + 3 + 2) + 2 * 8 * 32 * 0.5 + 0.25)


def test_measuring_runs_every_variant_and_reads_the_model_for_every_chunk(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = job(source, tmp_path, lwc=NO_LWC)
    tokens = 4 * 32
    head = 2 * 0.01 * tokens * asked.embeddings / asked.block_weights
    running = 3 * 0.03 * tokens
    found = estimate(asked, monkeypatch).validation
    assert found == pytest.approx(3 * 5.0 + running + head)
    chunked = estimate(replace(asked, validation_chunk=1), monkeypatch).validation
    assert chunked == pytest.approx(4 * 3 * 5.0 + running + head)
    known = estimate(replace(asked, has_full_precision=False), monkeypatch).validation
    assert known == pytest.approx(3 * (5.0 - 1.0) + 3 * 0.02 * tokens + head / 2)
    plain = estimate(
        replace(asked, has_full_precision=False, has_plain=True), monkeypatch
    ).validation
    assert plain > found > known


@pytest.mark.parametrize(
    "options",
    [
        {"lwc": NO_LWC},
        {"lwc": LWCConfig(epochs=1, batch_size=2, augmented_loss=True)},
        {"lwc": LWCConfig(epochs=1, batch_size=8, initialization="search")},
        {"weight_bits": 16},
    ],
)
def test_a_thin_block_goes_through_everything_a_block_does(
    source: Path, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duration, "MOST_TOKENS", 64)
    asked = job(source, tmp_path, **options)
    start = time.perf_counter()
    found = estimate_duration(asked, CPU, blocks_left=3, picture_seconds=0.0)
    assert 0 < found.per_block < found.calibration
    assert found.validation > 0
    assert time.perf_counter() - start < 30


def test_a_probe_waits_for_its_own_device(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duration, "MOST_TOKENS", 64)
    waited_for: list[torch.device] = []
    monkeypatch.setattr(torch.cpu, "synchronize", waited_for.append)
    estimate_duration(job(source, tmp_path), CPU, blocks_left=3, picture_seconds=0.0)
    assert len(waited_for) >= 2 * 8
    assert set(waited_for) == {CPU}
