"""Files of release 0.1.0: its model loads, its interrupted run goes on, to the same numbers."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import cli
import duquant
from duquant.export.command import export
from duquant.export.packed_block import OLD_SITE_NAMES
from duquant.json_files import read_json
from tests.assets import REPOSITORY
from tests.in_process import LIGHTNING_WARNINGS
from tests.quantized_directory import logits
from tests.release_0_1_0.make import describe_arithmetic, options

pytestmark = [
    *LIGHTNING_WARNINGS,
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # the run was moved here
]
RELEASE = REPOSITORY / "tests" / "release_0_1_0"
FIRST_BLOCK = "model-block-00000.safetensors"


def require_close(found: Tensor, expected: Tensor, what: str) -> None:
    """The same bits where floats are summed alike; else nearly all integers, and close floats."""
    with safe_open(RELEASE / "logits.safetensors", "pt") as file:
        if file.metadata() == describe_arithmetic():
            assert torch.equal(found, expected), what
            return
    if expected.is_floating_point():
        assert (found - expected).norm() <= 0.05 * expected.norm(), what
    else:
        assert (found != expected).float().mean() < 0.02, what


def require_same_logits(directory: Path) -> None:
    stored = load_file(RELEASE / "logits.safetensors")
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    duquant.set_execution(model, "reference")
    require_close(logits(model, stored["ids"]), stored["logits"], "logits")


def tensors(directory: Path) -> dict[str, Tensor]:
    """All of a model directory, by today's names."""
    found: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return {_todays_name(name): tensor for name, tensor in found.items()}


def _todays_name(name: str) -> str:
    for old, new in OLD_SITE_NAMES.items():
        name = name.replace(old, new)
    return name


def format_version(directory: Path) -> int:
    config = read_json(directory / "config.json", dict[str, Any])
    return int(config["quantization_config"]["format_version"])


def test_its_model_computes_the_same_logits() -> None:
    assert format_version(RELEASE / "model") == 2
    require_same_logits(RELEASE / "model")


def test_its_model_is_saved_in_todays_layout(tmp_path: Path) -> None:
    export(str(RELEASE / "model"), "native", str(tmp_path / "today"))
    assert format_version(tmp_path / "today") == 3
    again, before = tensors(tmp_path / "today"), tensors(RELEASE / "model")
    assert again.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.items())
    require_same_logits(tmp_path / "today")


def test_its_interrupted_run_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(RELEASE / "run", run)
    (run / "model").mkdir()
    shutil.copy(RELEASE / "model" / FIRST_BLOCK, run / "model")
    monkeypatch.setattr(sys, "argv", ["cli.py", "fit", *options(RELEASE, run)])
    cli.main()
    assert "continuing at block 2/2" in capsys.readouterr().err
    found, expected = tensors(run / "model"), tensors(RELEASE / "model")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        require_close(tensor, expected[name], name)
    require_same_logits(run / "model")
