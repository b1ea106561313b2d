"""The look at a GPU, on the emulated device."""

import sys
from pathlib import Path

import torch

from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu_check import ORDER, run_check
from tests.emulated.scenarios import DEVICE, Facts, scenario

COMMAND = (sys.executable, "-m", "tests.emulated.command_line")


@scenario
def gpu_checks(folder: Path) -> Facts:
    """Every line of it, with the sizes of a rehearsal."""
    bench = Bench(torch.device(DEVICE), True, folder, COMMAND)
    return {name: run_check(name, bench) for name in ORDER}
