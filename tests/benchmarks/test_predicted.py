"""The arithmetic of the predicted table: by hand, by units, and that README shows today's."""

from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch

from duquant.preflight.job import Job
from tests.assets import REPOSITORY
from tests.benchmarks.predicted.__main__ import (
    LLAMA_2_7B,
    calibrations,
    ratio,
    recipe_jobs,
    span,
    table,
    total,
)
from tests.benchmarks.predicted.card import (
    H100,
    H200,
    OPTIMISTIC,
    PESSIMISTIC,
    Assumptions,
    Card,
    Work,
    seconds,
)
from tests.benchmarks.predicted.parts import calibration, decoding, prefill
from tests.benchmarks.predicted.shapes import Block, searches, training_step
from tests.ceilings import COMPILED_FOR_GPUS, LAUNCHES_OF_A_STEP

SECONDS = ("launch", "gap", "wait", "step")
"""Assumptions that are lengths of time; all others are shares and bytes per second."""
WEIGHTS = 4 * 4096 * 4096 + 3 * 4096 * 11008


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    return recipe_jobs(tmp_path_factory.mktemp("model"))


def test_seconds_by_hand() -> None:
    """Of a card and of shares in round numbers."""
    card = Card("round", half=100.0, integer=200.0, full=10.0, bandwidth=1000.0)
    given = Assumptions(
        half=0.5, full=0.5, bandwidth=0.5, integer=0.25, packed=0.1,
        launch=0.01, gap=0.001, wait=0.1, step=0.2, pageable=10.0, pinned=20.0, disk=4.0,
    )  # fmt: skip
    work = Work(
        launches=100, replayed=900, waits=2, steps=5, half=50, full=10, integer=100,
        traffic=500, packed=100, pageable=10, pinned=10, read=2, written=80,
    )  # fmt: skip
    found = seconds(work, card, given)
    expected = {
        "launches": 100 * 0.01 + 5 * 0.2,
        "waits": 0.2,
        "products": 50 / 50 + 10 / 5 + 100 / 50,
        "traffic": 500 / 500 + 100 / 100 + 1000 * 0.001,
        "copies": 10 / 10 + 10 / 20 + 2 / 4,
        "files": 80 / 4,
    }
    assert asdict(found) == pytest.approx(expected)
    assert found.total == pytest.approx(20)
    assert found.bound == "files"
    without = replace(found, files=0.0)
    assert without.total == pytest.approx(5 + 3 + 0.2 + 2)
    waits_for_host = replace(without, launches=9.0)
    assert waits_for_host.total == pytest.approx(9 + 0.2 + 2)


def test_work_adds_up() -> None:
    work = Work(launches=3, half=2.0) + Work(launches=1, traffic=5.0) * 2
    assert work == Work(launches=5, half=2.0, traffic=10.0)


def test_a_training_step_by_hand(jobs: dict[str, Job]) -> None:
    """Two windows of 2,048 tokens; three products of every weight, each two operations."""
    block = Block.of(jobs["lwc_fast"])
    assert block.weights == WEIGHTS == jobs["lwc_fast"].block_weights
    step = training_step(block, 4096, learns_all=False)
    assert step["products of the linears"].half == 6 * 4096 * WEIGHTS
    forward = 2 * 2 * 2048 * 2048 * 4096  # two products, half of each hidden by the mask
    assert step["attention"].half == pytest.approx(forward * (2 * 2.3 + 2.5 * 5))
    assert step["attention"].traffic == 4.5 * 4 * 2 * 4096 * 4096
    assert step["the host"].launches == LAUNCHES_OF_A_STEP["LWC"]
    linears = seconds(step["products of the linears"], H100, OPTIMISTIC).total
    assert linears == pytest.approx(6 * 4096 * WEIGHTS / (0.7 * 989.5e12))
    assert 6e-3 < linears < 9e-3


def test_calibrations_by_hand(jobs: dict[str, Job]) -> None:
    """Steps of training and of searches, and the bytes of a stream: 128 windows."""
    fast, slow = (calibration(jobs[name])["training"] for name in ("lwc_fast", "w4a4_lwc"))
    assert fast.steps == 32 * 4 * 64
    assert slow.steps == 32 * 20 * 64
    assert slow.launches == slow.steps * LAUNCHES_OF_A_STEP["LWC"]
    assert "training" not in calibration(jobs["w4a4"])
    stream = 128 * 2048 * 4096 * 2
    for name, streams in (("w4a4", 1), ("lwc_fast", 2)):
        written = calibration(jobs[name])["files"].written
        assert written == pytest.approx(32 * (streams * stream + WEIGHTS / 2), rel=0.01)
    search = searches(Block.of(jobs["w4a4"]), 256, "outlier")
    entries = 2 * 2048 * (3 * 4096 + 11008)
    assert search.full == 256 * 2 * 128 * entries
    assert search.replayed == 8 * 256 * 25


def test_decoding_is_the_weights_and_the_cache(jobs: dict[str, Job]) -> None:
    job = jobs["w4a4"]
    original, quantized = (decoding(job, quantized=each, how="graph") for each in (False, True))
    cache, head = 2 * 2048 * 4096 * 2, 32000 * 4096 * 2
    assert original.traffic == pytest.approx(32 * (2 * WEIGHTS + cache) + head, rel=1e-3)
    assert quantized.packed == 32 * WEIGHTS / 2
    assert quantized.replayed == 32 * COMPILED_FOR_GPUS["W4A4"]
    compiled = decoding(job, quantized=True, how="compiled")
    assert compiled == replace(
        quantized, launches=quantized.launches + quantized.replayed, replayed=0
    )


@pytest.mark.parametrize("name", [field.name for field in fields(Assumptions)])
@pytest.mark.parametrize("card", [H100, H200], ids=lambda card: card.name)
def test_what_is_faster_never_takes_longer(jobs: dict[str, Job], card: Card, name: str) -> None:
    low, high = getattr(OPTIMISTIC, name), getattr(PESSIMISTIC, name)
    assert low < high if name in SECONDS else low > high
    worse = replace(OPTIMISTIC, **{name: high})
    works = [decoding(jobs["w4a4"], quantized=True, how=how) for how in ("eager", "graph")]
    works.append(prefill(Block.of(jobs["w4a4"]), quantized=True))
    parts = [row.parts for row in calibrations(jobs)] + [{"": work} for work in works]
    changes = [total(each, card, worse) - total(each, card, OPTIMISTIC) for each in parts]
    assert min(changes) >= 0
    assert max(changes) > 0 or name == "step", "the host is ahead of the card in every training"


def test_more_memory_bandwidth_is_never_slower(jobs: dict[str, Job]) -> None:
    for row in calibrations(jobs):
        for given in (OPTIMISTIC, PESSIMISTIC):
            assert total(row.parts, H200, given) <= total(row.parts, H100, given)


def test_a_ratio_is_that_of_the_same_card() -> None:
    work = Work(launches=10, half=1e12)
    assert ratio(work, work, H100) == (1.0, 1.0)
    assert ratio(work * 3, work, H100) == pytest.approx((3.0, 3.0))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.0, 0.0], "0"),
        ([90.0, 66.0], "1.1 to 1.5 min"),
        ([1.25, 20.0], "1.25 to 20 s"),
        ([0.0014, 0.0002], "200 to 1400 µs"),
        ([0.5, 0.004], "4 to 500 ms"),
    ],
)
def test_spans_have_units(values: list[float], text: str) -> None:
    assert span(values) == text


def test_readme_shows_what_is_computed_today(jobs: dict[str, Job]) -> None:
    """Run ``python -m tests.benchmarks.predicted`` and put its lines into the README."""
    text = Path(REPOSITORY / "tests" / "benchmarks" / "README.md").read_text(encoding="utf-8")
    shown = text.splitlines()
    assert [each for each in table(jobs) if each and each not in shown] == []


def test_the_model_is_what_it_says(jobs: dict[str, Job]) -> None:
    decoder = jobs["w4a4"].decoder
    assert decoder.num_blocks == LLAMA_2_7B["num_hidden_layers"] == 32
    assert decoder.dtype == torch.bfloat16
    assert jobs["w4a4"].streams.shape == (128, 2048, 4096)
