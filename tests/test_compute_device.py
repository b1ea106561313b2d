"""Where a calibration computes: one device for blocks and trainer, and none that cannot."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.accelerators import MPSAccelerator as FabricMPSAccelerator
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch import nn

import cli
import duquant
from callbacks.accelerator import usable_accelerator
from duquant import quantization
from duquant.compute_device import calibration_device
from duquant.quantization import BlockSamples
from tests.in_process import LIGHTNING_WARNINGS
from tests.small_run import arguments, write_small_model

pytestmark = LIGHTNING_WARNINGS


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, of which the program has made the second the current one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr("duquant.compute_device.torch.empty", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("asked", "found"), [("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")]
)
def test_cuda_is_the_current_gpu(asked: str, found: str, two_gpus: None) -> None:
    assert calibration_device(asked) == calibration_device(torch.device(asked))
    assert calibration_device(asked) == torch.device(found)


@pytest.mark.parametrize("asked", ["cuda", "cuda:0", "cuda:1", "cpu"])
def test_the_trainer_computes_where_the_block_is(
    asked: str, two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Lightning is told, and where the block is behind it: Lightning takes it to the CPU."""
    told: dict[str, Any] = {}

    def trainer(**options: Any) -> Any:
        told.update(options)
        return SimpleNamespace(fit=lambda block, loader: None)

    class Block(nn.Module):
        recipe = duquant.Recipe()
        lies: Any = None

        def to(self, *place: Any, **_: Any) -> "Block":
            self.lies = place
            return self

    monkeypatch.setattr(quantization, "Trainer", trainer)
    block, stream = Block(), torch.zeros(2, 3, 4)
    place = calibration_device(asked)
    quantization._train(block, BlockSamples(stream, stream), duquant.Recipe().lwc, place)  # type: ignore[arg-type]
    index = told["devices"][0] if place.type == "cuda" else None
    assert torch.device(told["accelerator"], index) == place
    assert block.lies == (place,)


@pytest.mark.parametrize(
    ("device", "words"), [("mps", "float64"), ("meta", "memory"), ("abacus", "no device abacus")]
)
def test_a_device_that_cannot_calibrate_is_refused_before_any_work(
    device: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "mps":
        monkeypatch.setattr("duquant.compute_device.torch.empty", lambda *_, **__: None)
    with pytest.raises(ValueError, match=words) as refused:
        duquant.quantize("nowhere", "", output_dir=tmp_path / "model", device=device)
    assert "\n" not in str(refused.value)


# Apple silicon


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (MPSAccelerator, FabricMPSAccelerator):
        monkeypatch.setattr(kind, "is_available", staticmethod(lambda: True))


def test_lightning_alone_would_take_mps(apple: None) -> None:
    """Else there would be no need for any of this."""
    assert _AcceleratorConnector._choose_auto_accelerator() == "mps"


def test_the_cpu_stands_in_for_mps_and_a_line_says_so(
    apple: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert usable_accelerator("auto") == "cpu"
    assert capsys.readouterr().err == (
        "computing on the CPU: MPS has no float64, which calibration needs\n"
    )
    assert usable_accelerator("cpu") == "cpu"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("asked", ["mps", "gpu"])
def test_mps_by_name_is_refused(asked: str, apple: None) -> None:
    with pytest.raises(ValueError, match=f"accelerator is {asked}: MPS has no float64.*use cpu"):
        usable_accelerator(asked)


def test_other_machines_are_left_to_lightning(capsys: pytest.CaptureFixture[str]) -> None:
    for asked in ("auto", "cpu", "gpu", "cuda"):
        assert usable_accelerator(asked) == asked
    assert capsys.readouterr().err == ""


def test_the_first_command_works_on_apple_silicon(
    apple: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_small_model(tmp_path / "model", blocks=1)
    options = ["--model.lwc.epochs", "1"]
    command = ["cli.py", "fit", *arguments(model, tmp_path / "run", *options)]
    monkeypatch.setattr("sys.argv", command)
    cli.main()
    assert capsys.readouterr().err.count("computing on the CPU: MPS has no float64") == 1
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
