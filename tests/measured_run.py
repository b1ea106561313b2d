"""A run in a process of its own, and what the operating system says it took."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.assets import REPOSITORY

NOTHING: Mapping[str, str] = MappingProxyType({})
OPTIONS = ("--model.reuse_full_precision", "false")
MEASURE = """
import json
import cli
from duquant.ops.process_memory import peak_resident_bytes

imported = peak_resident_bytes()
cli.main()
print(json.dumps({"imported": imported, "peak": peak_resident_bytes()}))
"""


def measured_run(
    output: Path, *options: str, threads: int = 1, environment: Mapping[str, str] = NOTHING
) -> dict[str, Any]:
    """Fit and validate.

    Args:
        output: the run directory.
        options: of ``cli.py fit``.
        threads: that PyTorch may use.
        environment: further variables of the process.

    Returns:
        The run's summary, and ``imported`` and ``peak``: the largest resident memory in bytes
        before it began and at all.
    """
    fixed = {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, "fit", *OPTIONS, *options, "--output_dir", str(output)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, **fixed, **environment},
    )
    if process.returncode:
        raise RuntimeError(process.stderr)
    measured: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return {**measured, **json.loads((output / "summary.json").read_text())}
