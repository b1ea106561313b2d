"""The Triton kernels: their numbers in Triton's interpreter, and that a GPU's compiler takes them.

Each of the two is a process of its own, because Triton decides when it is imported whether it
interprets. The machine needs no GPU, but the package triton, which comes with PyTorch for CUDA;
continuous integration has it beside vLLM.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.assets import REPOSITORY

FILES = sorted(map(str, Path(__file__).parent.glob("interpreted_*.py")))
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs the package triton"
)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = ":".join([str(REPOSITORY), *sys.path])
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": path} | environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@needs_triton
def test_numbers_in_the_interpreter() -> None:
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "--no-header"]
    process = run("-m", "pytest", *options, *FILES, TRITON_INTERPRET="1")
    assert process.returncode == 0, process.stdout + process.stderr
    assert "skipped" not in process.stdout
