"""Settings of every test: one thread, reproducible examples; and one finished run to look at."""

import os
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from tests.interrupts import let_children_be_interrupted

if TYPE_CHECKING:
    from tests.in_process import FinishedRun

# One thread adds floats in one order on every machine, and two cores are shared with other work.
torch.set_num_threads(1)

# No test depends on how fast something is: the fixed rule decides what runs, in children too.
os.environ["DUQUANT_MEASURE"] = "0"

let_children_be_interrupted()

# Examples come from a fixed seed: a red test is red again. No deadline: it would assert a time.
settings.register_profile(
    "duquant", deadline=None, derandomize=True, database=None, max_examples=25
)
settings.load_profile("duquant")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> "FinishedRun":
    """One run for all tests that only read; imported late, because most tests need no trainer."""
    from tests.in_process import finish_run

    return finish_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def without_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integer products by PyTorch alone, as on a machine without a compiler."""
    from duquant.ops.kernels import int4

    monkeypatch.setattr(int4, "_library", lambda: None)
