"""The memory of one block: a whole run's resident peak, measured by the operating system.

A process of its own calibrates, exports and measures a random model. Its libraries come first, and
what the peak rises above them by is what the run took. A block here weighs 13 MB in float32, so a
run that kept its blocks, or the pages of files it has read, would show. Few tokens go through them:
they take time, and next to no memory.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.measured_run import measured_run
from tests.random_checkpoint import Shape, write_random_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")

SHAPE = Shape(2, hidden=512, intermediate=1408)
BLOCK_BYTES = 4 * (4 * 512 * 512 + 3 * 512 * 1408)
FEW, MANY = 2, 8

# The C library keeps what is freed, and how much depends on the threads and on their number: some
# 30 MB from one run to the next. A tensor that has pages of its own goes back when it is freed.
RETURN_WHAT_IS_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}


def measure(model: Path, output: Path, *options: str) -> dict[str, Any]:
    """Peaks of a short run."""
    return measured_run(
        output,
        "--model.pretrained", str(model),
        "--model.rotation.max_steps", "1", "--model.lwc.epochs", "1",
        "--data.calibration", "python_topics", "--data.validation", "{t: python_topics}",
        "--data.num_samples", "2", "--data.sequence_length", "128",
        "--data.validation_windows", "2", *options,
        environment=RETURN_WHAT_IS_FREED,
    )  # fmt: skip


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("few")
    model = write_random_checkpoint(directory / "model", SHAPE.with_blocks(FEW))
    return measure(model, directory / "run")


@pytest.mark.parametrize(
    ("is_sharded", "options"),
    [(True, ()), (False, ("--data.stream_memory_gb", "0"))],
    ids=["shards", "one file, streams on disk"],
)
def test_the_peak_does_not_grow_with_the_number_of_blocks(
    few: dict[str, Any], tmp_path: Path, is_sharded: bool, options: tuple[str, ...]
) -> None:
    model = write_random_checkpoint(tmp_path / "model", SHAPE.with_blocks(MANY), sharded=is_sharded)
    many = measure(model, tmp_path / "run", *options)
    # Six more blocks were calibrated. What is written behind overlaps with more: one block's worth.
    assert many["peak"] - few["peak"] < (MANY - FEW) // 2 * BLOCK_BYTES


def test_the_peak_is_what_was_expected(few: dict[str, Any]) -> None:
    memory = few["preflight"]["memory_bytes"]
    assert memory["measured"] == pytest.approx(memory["estimate"], rel=0.25)
    # Training holds a block three times; the rest is the libraries' own (see the estimate).
    assert few["peak"] - few["imported"] < 3 * BLOCK_BYTES + (200 << 20)
