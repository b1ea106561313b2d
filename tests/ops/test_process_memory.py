"""How much memory a process took and may still take."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from duquant.ops import process_memory
from duquant.ops.process_memory import available_bytes, peak_resident_bytes
from tests.assets import REPOSITORY


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(process_memory, "CONTAINER", tmp_path)
    return tmp_path


def test_without_a_container_the_machine_counts(container: Path) -> None:
    # Other processes take and give memory between the two calls.
    assert available_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize(("limit", "expected"), [("5000000", 3_000_000), ("1000000", 0)])
def test_a_container_may_allow_less(container: Path, limit: str, expected: int) -> None:
    (container / "memory.max").write_text(f"{limit}\n")
    (container / "memory.current").write_text("2000000\n")
    assert available_bytes() == expected


def test_cached_files_do_not_count_as_used(container: Path) -> None:
    (container / "memory.max").write_text("5000000\n")
    (container / "memory.current").write_text("4500000\n")
    (container / "memory.stat").write_text("anon 500000\ninactive_file 4000000\nfile 1\n")
    assert available_bytes() == 4_500_000


def test_a_container_without_a_limit_allows_all(container: Path) -> None:
    (container / "memory.max").write_text("max\n")
    (container / "memory.current").write_text("2000000\n")
    assert available_bytes() > 3_000_000


def test_the_peak_is_this_processes_own() -> None:
    """A child of a process that once was large is not large."""
    before = peak_resident_bytes()
    ballast = torch.ones(before // 4 + (400 << 20) // 4)
    assert peak_resident_bytes() - before > 300 << 20
    del ballast
    code = "from duquant.ops.process_memory import peak_resident_bytes as p; print(p())"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert int(child.stdout) < peak_resident_bytes()
    if sys.platform == "linux":
        assert int(child.stdout) < before + (300 << 20)
