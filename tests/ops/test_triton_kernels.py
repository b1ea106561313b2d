"""The Triton kernels: their numbers in Triton's interpreter, and that a GPU's compiler takes them.

Each of the two is a process of its own, because Triton decides when it is imported whether it
interprets. The machine needs no GPU, but the package triton, which comes with PyTorch for CUDA;
continuous integration has it beside vLLM.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from duquant.ops.kernels.table import KERNELS
from duquant.ops.triton_kernels import int4, presence, rows, transform, transformed
from tests.assets import REPOSITORY
from tests.benchmarks.decode_kernels import reason_to_skip
from tests.ops.kernel_cases import CASES
from tests.ops.test_kernel_table import as_list, disabled, name_of

KERNELS_OF_A_TOKEN = {"not quantized": 15, "W4A4": 26}
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


@needs_triton
def test_the_compiler_takes_every_kernel(tmp_path: Path) -> None:
    process = run("-m", "tests.ops.compiled_triton", TRITON_CACHE_DIR=str(tmp_path))
    assert process.returncode == 0, process.stdout + process.stderr
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    has = {line["name"]: line["has"] for line in lines}
    assert len(has) == 9
    smallest = 99 << 10  # what a program may have on GPUs of capability 8.6 and 8.9
    assert all(line["shared"] <= smallest for line in lines)
    for name in ("few_tokens", "many_tokens"):  # int8 on tensor cores, read ahead
        assert {"mma.sync", ".s8.s8.s32", "cp.async"} <= set(has[name])
    for name in ("fake_quantize", "gradient", "encode"):  # as IEEE divides
        assert has[name] == ["div.rn.f32"]
    for name in ("rotate_and_encode", "quantize_values"):  # and products of rotations
        assert {"div.rn.f32", "fma.rn.f32"} <= set(has[name])
        assert "div.full" not in has[name]
    assert not any("fma.rn.f32" in has[name] for name in ("few_tokens", "many_tokens"))
    assert "mma.sync" in has["rotate_blocks"]


@needs_triton
def test_a_decoded_token_needs_no_more_kernels_on_a_gpu() -> None:
    """In what Inductor writes for a compiled model; lower the ceilings when fewer are launched."""
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    process = run("-W", "ignore", "-m", "tests.benchmarks.written_kernels")
    assert process.returncode == 0, process.stderr
    totals = dict(re.findall(r"^(.+): (\d+) kernels$", process.stdout, re.MULTILINE))
    assert totals.keys() == KERNELS_OF_A_TOKEN.keys()
    for name, most in KERNELS_OF_A_TOKEN.items():
        assert int(totals[name]) <= most, process.stdout


def test_nothing_imports_triton_before_a_kernel_is_launched() -> None:
    """``import duquant`` stays light, and works where Triton is missing."""
    source = REPOSITORY / "duquant" / "ops" / "triton_kernels" / "source"
    for file in (REPOSITORY / "duquant").rglob("*.py"):
        if file.parent != source:
            text = file.read_text()
            assert not re.search(r"^\s*(import|from) triton\b", text, re.MULTILINE), file
            assert not re.search(r"^(import|from) .*triton_kernels.source", text, re.MULTILINE), (
                file
            )


@pytest.mark.parametrize(
    ("interprets", "capability", "has_triton", "is_right", "reason"),
    [
        ("0", None, True, lambda _: True, None),  # no GPU, and nothing to say
        ("0", (7, 5), True, lambda _: True, "a GPU has compute capability 7.5, below 8.0"),
        ("1", None, False, lambda _: True, "the package triton is not installed"),
        ("1", None, True, lambda _: [].pop(), "Triton failed (IndexError: pop from empty list)"),
        ("1", None, True, lambda _: False, "results of tests.ops.test_triton_kernels are wrong"),
    ],
    ids=["none", "old", "missing", "fails", "wrong"],
)
def test_it_may_be_missing_and_says_so_once(
    interprets: str,
    capability: tuple[int, int] | None,
    has_triton: bool,
    is_right: Callable[[torch.device], bool],
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(presence, "_reasons", [])
    monkeypatch.setenv("TRITON_INTERPRET", interprets)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", [(9, 0), capability].__getitem__)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True if has_triton else None)
    is_right.__module__ = __name__
    assert [presence.runs_here(is_right) for _ in range(2)] == [False, False]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (reason is not None)
    assert all("Triton kernels are off" in each and str(reason) in each for each in said)
    if interprets == "1" and has_triton:
        assert presence.runs_here(lambda _: True)
        monkeypatch.setenv("DUQUANT_KERNELS", "0")
        assert not presence.runs_here(lambda _: True)


def test_without_it_the_definitions_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (int4, rows, transform, transformed):
        monkeypatch.setattr(module, "is_available", lambda: False)
    for kernel in (row._replace(device="cpu") for row in KERNELS if row.device == "cuda"):
        case = next(CASES[name_of(kernel)]())
        found = as_list(kernel.function(*case.arguments))
        with disabled(kernel):
            expected = as_list(kernel.operator(*case.arguments))
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
