"""What the tests let the product do on the emulated device, each in a process of its own.

    python tests/emulated/scenarios.py NAME DIRECTORY

prints one line of JSON; ``DIRECTORY`` is empty, to write into."""

import contextlib
import importlib
import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import duquant
from duquant.config import DistillationConfig, LWCConfig, RoundingConfig
from duquant.export.conversion import QuantizedSource, export_model
from duquant.export.targets.table import EXPORTERS
from tests.emulated import backend, device, trainer
from tests.emulated.counts import counting
from tests.in_process import (
    LEARNS_ALL,
    NO_LWC,
    ROTATION,
    write_text,
)
from tests.small_run import stored_tensors, write_small_model

Facts = dict[str, Any]
SCENARIOS: dict[str, Callable[[Path], Facts]] = {}
DEVICE = f"{device.NAME}:0"
LWC = LWCConfig(epochs=2, batch_size=2, learning_rate=0.1)
DISTILLATION = DistillationConfig(epochs=2, batch_size=2)
RECIPES: dict[str, dict[str, Any]] = {
    "nothing_learns": {"rotation": ROTATION, "lwc": NO_LWC, "rounding": RoundingConfig("gptq")},
    "everything_learns": {**LEARNS_ALL, "lwc": LWC, "distillation": DISTILLATION},
    "searched_start": {
        "rotation": ROTATION,
        "lwc": LWCConfig(2, 0.1, 2, initialization="search", augmented_loss=True),
    },
}


def scenario(work: Callable[[Path], Facts]) -> Callable[[Path], Facts]:
    """Make it known by its name."""
    SCENARIOS[work.__name__] = work
    return work


def refusal(work: Callable[[], object]) -> str:
    """What is said of work that cannot be done; empty if it can."""
    try:
        work()
    except (RuntimeError, TypeError) as error:
        return str(error)
    return ""


@scenario
def the_device(folder: Path) -> Facts:
    """What the device refuses, and what it counts."""
    host = torch.arange(6.0).view(2, 3)
    here = host.to(DEVICE)
    refused = {
        "mixed": refusal(lambda: here + host),
        "mixed in place": refusal(lambda: here.add_(host)),
        "read": refusal(here.data_ptr),
        "numpy": refusal(here.numpy),
        "generator": refusal(lambda: here.normal_(generator=torch.Generator("cpu"))),
        "index": refusal(lambda: host[torch.zeros(1, dtype=torch.long).to(DEVICE)]),
    }
    waiting: dict[str, Callable[[], object]] = {
        "item": here[0, 0].item,
        "bool": lambda: bool(here[0, 0]),
        "int": lambda: int(here[0, 0]),
        "tolist": here.tolist,
        "cpu": here.cpu,
        "copy": lambda: torch.empty(2, 3).copy_(here),
        "nonzero": here.nonzero,
        "mask": lambda: here[here > 1],
        "equal": lambda: torch.equal(here, here),
    }
    silent: dict[str, Callable[[], object]] = {
        "product": lambda: here @ here.T,
        "scalar on the host": lambda: here + torch.tensor(1.0),
        "made there": lambda: torch.zeros(2, 3, device=DEVICE),
        "gather": lambda: here.gather(1, torch.zeros(2, 3, dtype=torch.long, device=DEVICE)),
        "view": lambda: here.view(3, 2)[1:].T,
    }
    with counting() as uploads:
        host.to(DEVICE)
    with counting() as product:
        silent["product"]()
    return {
        "refused": refused,
        "waits": {name: _waits(work) for name, work in waiting.items()},
        "silent": {name: _waits(work) for name, work in silent.items()},
        "same storage": [
            other.untyped_storage().data_ptr() == here.untyped_storage().data_ptr()
            for other in (here[1:], here.detach(), here.clone())
        ],
        "uploads": uploads.totals()["uploads"],
        "kernels of a product": product.totals()["kernels"],
    }


def _waits(work: Callable[[], object]) -> int:
    with counting() as counts:
        work()
    return counts.waits.total()


def sources(folder: Path, blocks: int = 2) -> tuple[Path, Path]:
    return write_small_model(folder / "source", blocks=blocks), write_text(folder / "text.txt")


def _calibrated(folder: Path, name: str) -> Facts:
    """A recipe on the device and on the CPU: how many bytes of the weights are the same."""
    (source, text), recipe = sources(folder), duquant.Recipe(**RECIPES[name])
    for place in ("cpu", DEVICE):
        duquant.quantize(
            source, text.read_text(encoding="utf-8"), recipe,
            output_dir=folder / place[:3] / "model", num_samples=4, sequence_length=16,
            device=place,
        )  # fmt: skip
    expected, found = stored_tensors(folder / "cpu"), stored_tensors(folder / device.NAME[:3])
    shares = [
        float((found[key] == expected[key]).float().mean())
        for key in expected
        if key.endswith(".packed")
    ]
    exported = QuantizedSource(folder / device.NAME[:3] / "model")
    export_model(exported, folder / "export", EXPORTERS["dequantized"]())
    return {
        "same names": expected.keys() == found.keys(),
        "finite": all(bool(each.isfinite().all()) for each in found.values()),
        "equal": all(torch.equal(found[key], expected[key]) for key in expected),
        "least share of equal bytes": min(shares),
        "exported": len(list((folder / "export").glob("*.safetensors"))),
        **_written(folder / device.NAME[:3] / "model", source),
    }


def _written(directory: Path, source: Path) -> Facts:
    """Tokens of a model that is loaded onto the device and onto the CPU."""
    ids = torch.arange(3, 19).view(2, 8)
    there = AutoModelForCausalLM.from_pretrained(directory, device_map={"": DEVICE})
    here = AutoModelForCausalLM.from_pretrained(directory)
    original = AutoModelForCausalLM.from_pretrained(source, device_map={"": DEVICE})
    facts: Facts = {
        "devices": sorted({str(each.device) for each in there.state_dict().values()}),
        "tokens": {},
        "kernels per layer and token": {},
        "waits per layer and token": {},
    }
    caches: dict[str, Callable[[Any], Facts]] = {
        "dynamic": lambda model: {},
        "static": lambda model: {"cache_implementation": "static"},
        "beams": lambda model: {"num_beams": 2},
        "packed": lambda model: {"past_key_values": duquant.PackedCache(model)},
    }

    def write(model: Any, cache: str, count: int) -> Tensor:
        given, options = ids.to(model.device), caches[cache](model)
        written: Tensor = model.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, eos_token_id=None,
            max_new_tokens=count, **options,
        )  # fmt: skip
        return written

    for cache in caches:
        totals = []
        for count in (3, 5):
            with counting() as counts:
                written = write(there, cache, count)
            totals.append(counts.totals())
        facts["tokens"][cache] = torch.equal(written.cpu(), write(here, cache, 5))
        for what in ("kernels", "waits"):
            per_token = (totals[1][what] - totals[0][what]) / 2
            facts[f"{what} per layer and token"][cache] = per_token / here.config.num_hidden_layers
    facts["kernels with Triton"] = _of_a_token(there, ids)
    facts["kernels of the original"] = _of_a_token(original, ids)
    return facts


def _of_a_token(model: Any, ids: Tensor) -> float:
    """Kernels of a token and layer, dynamic cache, on a GPU with Triton."""
    totals, given = [], ids.to(model.device)
    for count in (3, 5):
        with counting() as counts, device.triton_kernels():
            model.generate(
                given, attention_mask=torch.ones_like(given), do_sample=False, eos_token_id=None,
                max_new_tokens=count,
            )  # fmt: skip
        totals.append(counts.kernels.total())
    return float(totals[1] - totals[0]) / 2 / float(model.config.num_hidden_layers)


@scenario
def nothing_learns(folder: Path) -> Facts:
    """Without training, GPTQ."""
    return _calibrated(folder, "nothing_learns")


@scenario
def everything_learns(folder: Path) -> Facts:
    """LWC, learned transforms, clip factors of activations, distillation."""
    return _calibrated(folder, "everything_learns")


@scenario
def searched_start(folder: Path) -> Facts:
    """Clip factors from a search, the augmented loss."""
    return _calibrated(folder, "searched_start")


def main() -> None:
    """Run one scenario."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    backend.install()
    trainer.install()
    for more in (
        "steps",
        "runs",
        "searches",
        "repeats",
        "narrow",
        "turns",
        "checks",
        "blocks",
        "copies",
        "choices",
    ):
        importlib.import_module(f"tests.emulated.{more}")
    with contextlib.redirect_stdout(io.StringIO()):  # standard output is for the facts
        facts = SCENARIOS[name](folder)
    print(json.dumps(facts))


if __name__ == "__main__":
    importlib.import_module("tests.emulated.scenarios").main()  # one table, not that of __main__
