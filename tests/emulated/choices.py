"""Scenarios of a choice that is measured on the emulated device, by a clock that the runs move."""

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM

import duquant
from duquant.model.execution import configure_site, transform_of
from duquant.model.structure import SITES
from duquant.nn import choice, execution, measured_choice, site
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.planned_memory import bytes_at_work
from duquant.ops import device_turns, integer_product
from duquant.ops.kernel_presence import announce_kernel
from duquant.ops.packed_product import linear_in_steps
from tests.emulated import backend
from tests.emulated.clock import Clock
from tests.emulated.counts import counting
from tests.emulated.device import NAME, EmulatedTensor
from tests.emulated.scenarios import DEVICE, RECIPES, Facts, scenario, sources

SECONDS = {"packed": 1.0, "cuda": 9.0, "reference": 9.0}
GIB = 1 << 30
SHORT = torch.OutOfMemoryError("short")
MODULE = torch.get_device_module(DEVICE)


class Runs:
    """Candidates that take what is said, or fail.

    Attributes:
        seconds: of a run, by candidate.
        failing: what a candidate raises.
        count: how many runs there were.
    """

    def __init__(self, cache: Path) -> None:
        self.seconds: dict[str, float] = dict(SECONDS)
        self.failing: dict[str, Exception] = {}
        self.count = 0
        self._cache, self._usual = cache, measured_choice._candidates

    def candidates(self, *arguments: Any) -> dict[str, Callable[[int], Any]]:
        """As the product's, but by the clock of :mod:`tests.emulated.clock`."""
        found = self._usual(*arguments)
        return {name: self._timed(name, make) for name, make in found.items()}

    def _timed(self, name: str, make: Callable[[int], Any]) -> Callable[[int], Any]:
        def prepare(size: int) -> Callable[[], None]:
            run = make(size)

            def take() -> None:
                if name in self.failing:
                    raise self.failing[name]
                run()
                self.count += 1
                Clock.now += 1e3 * self.seconds[name]

            return take

        return prepare

    def forget(self, *, files: bool = True) -> None:
        """Begin anew, as another process, and without files as on another machine."""
        measured_choice._choice.cache_clear()
        self.count = 0
        for file in self.files() if files else []:
            file.unlink()

    def files(self) -> list[Path]:
        """With times that are kept."""
        return list((self._cache / "duquant").glob("times-*.json"))


@contextmanager
def _measuring(folder: Path) -> Iterator[Runs]:
    """A device with int8 units, a packed kernel, and a rule that prefers integers."""
    runs = Runs(folder)
    usual = integer_product.engine

    def engine(device: torch.device) -> str | None:
        return "cuda" if device.type == NAME else usual(device)

    announce_kernel("duquant::packed_linear", NAME, lambda: True, linear_in_steps)
    with ExitStack() as stack:
        variables = {"XDG_CACHE_HOME": str(folder), "DUQUANT_MEASURE": "1"}
        stack.enter_context(mock.patch.dict(os.environ, variables))
        for module in (execution, integer_product, site):
            stack.enter_context(mock.patch.object(module, "engine", engine))
        for module in (execution, choice):
            stack.enter_context(mock.patch.object(module, "FEWEST_INPUTS_PER_SCALE", 1))
        stack.enter_context(mock.patch.object(measured_choice, "_candidates", runs.candidates))
        stack.enter_context(mock.patch.object(device_turns, "FILLED_BYTES", 1024))
        yield runs


def _model(folder: Path) -> Any:
    source, text = sources(folder, blocks=1)
    directory = duquant.quantize(
        source, text.read_text(encoding="utf-8"), duquant.Recipe(**RECIPES["nothing_learns"]),
        output_dir=folder / "model", num_samples=4, sequence_length=16,
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(directory).to(DEVICE)


@scenario
def choices(folder: Path) -> Facts:
    """What runs a model's linears, in words, and what was measured for that."""
    model = _model(folder)
    with _measuring(folder / "cache") as runs:
        return {
            "followed": _followed(model, runs),
            "failing": _failing(model, runs),
            "kept": _kept(model, runs),
            "not measured": _not_measured(model, runs),
            "short": _short(model, runs),
            "quiet": _quiet(model, runs),
        }


def _followed(model: Any, runs: Runs) -> Facts:
    facts = {}
    for name, seconds in {
        "the rule": {},
        "not worth its memory": {"cuda": 0.7},
        "worth its memory": {"cuda": 0.6},
        "a reference not worth its memory": {"reference": 0.7},
        "a reference worth its memory": {"reference": 0.6},
    }.items():
        runs.forget()
        runs.seconds = {**SECONDS, **seconds}
        facts[name] = duquant.set_execution(model)
    runs.seconds = dict(SECONDS)
    return facts


def _failing(model: Any, runs: Runs) -> Facts:
    failure, facts = ValueError("bad"), {}
    for name, failing in {
        "packed": {"packed": failure},
        "reference": {"reference": SHORT},
        "integers": {"packed": SHORT, "cuda": failure},
        "all": {"packed": SHORT, "cuda": failure, "reference": failure},
    }.items():
        runs.forget()
        runs.failing = failing
        facts[name] = {"words": duquant.set_execution(model), "files": len(runs.files())}
    runs.failing = {}
    return facts


def _kept(model: Any, runs: Runs) -> Facts:
    def again(seconds: float) -> dict[str, Any]:
        runs.forget(files=False)
        runs.seconds["reference"] = seconds
        return {"words": duquant.set_execution(model), "runs": runs.count}

    runs.forget()
    first = again(9.0)
    stored = [json.loads(file.read_text(encoding="utf-8"))["measured"] for file in runs.files()]
    facts: Facts = {"first": first, "again": again(0.1), "names": [s["device"] for s in stored]}
    for file in runs.files():
        file.write_text('{"version": 2', encoding="utf-8")
    facts["damaged"] = again(0.1)
    with mock.patch.object(MODULE, "get_device_name", return_value="another"):
        facts["another"] = again(9.0)
    facts["files"] = len(runs.files())
    runs.seconds = dict(SECONDS)
    return facts


def _not_measured(model: Any, runs: Runs) -> Facts:
    runs.seconds["reference"] = 0.1  # what would be taken
    linears = [each for each in model.modules() if isinstance(each, PackedLinear)]
    block = model.model.layers[0]
    qkv = [block.get_submodule(name) for name in SITES[0].linears]

    def plan() -> None:
        for linear in linears:
            linear.choice, linear.execution = None, execution.Execution()
            bytes_at_work(linear, torch.device(DEVICE))

    ways: dict[str, tuple[Any, Callable[[], Any]]] = {
        "compiling": (
            mock.patch.object(torch.compiler, "is_compiling", return_value=True),
            lambda: duquant.set_execution(model),
        ),
        "capturing": (
            mock.patch.object(
                MODULE, "is_current_stream_capturing", create=True, return_value=True
            ),
            lambda: duquant.set_execution(model),
        ),
        "little memory": (
            mock.patch.object(backend.Memory, "free", GIB),
            lambda: duquant.set_execution(model),
        ),
        "memory that is gone": (
            mock.patch.object(measured_choice, "device_timings", side_effect=SHORT),
            lambda: duquant.set_execution(model),
        ),
        "nobody says": (
            mock.patch.object(measured_choice, "free_device_bytes", return_value=None),
            lambda: duquant.set_execution(model),
        ),
        "switched off": (
            mock.patch.dict(os.environ, {"DUQUANT_MEASURE": "0"}),
            lambda: duquant.set_execution(model),
        ),
        "packed": (ExitStack(), lambda: duquant.set_execution(model, "auto", "packed")),
        "planned": (ExitStack(), plan),
        "a site alone": (
            ExitStack(),
            lambda: configure_site(transform_of(block, SITES[0]), qkv, execution.Execution()),
        ),
    }
    facts = {}
    for name, (patch, work) in ways.items():
        runs.forget()
        with patch:
            work()
        facts[name] = {"runs": runs.count, "integer": all(one.is_integer for one in qkv)}
    runs.seconds = dict(SECONDS)
    return facts


def _short(model: Any, runs: Runs) -> Facts:
    """The reference is faster, and takes the packed weights' memory several times."""
    runs.seconds["reference"] = 0.1
    linears = [each for each in model.modules() if isinstance(each, PackedLinear)]
    more = sum(each.in_features * each.out_features * 4 for each in linears)
    facts: Facts = {}
    with mock.patch.object(measured_choice, "MEMORY", 0):
        for name, free in {"enough": 2 * more, "short": 2 * more - 1}.items():
            runs.forget()
            with mock.patch.object(backend.Memory, "free", free):
                facts[name] = duquant.set_execution(model)
                facts[f"{name}, asked again"] = duquant.set_execution(model)
    runs.seconds = dict(SECONDS)
    return facts


def _tensors() -> int:
    gc.collect()
    return sum(isinstance(each, EmulatedTensor) for each in gc.get_objects())


def _quiet(model: Any, runs: Runs) -> Facts:
    """What measuring leaves behind, and how often the host waits for it."""
    ids = torch.arange(3, 19).view(2, 8).to(DEVICE)
    with torch.no_grad(), mock.patch.dict(os.environ, {"DUQUANT_MEASURE": "0"}):
        duquant.set_execution(model)
        before = model(ids).logits.cpu()
    duquant.set_execution(model, "integer", "packed")
    runs.forget()
    tensors, random = _tensors(), torch.random.get_rng_state()
    with counting() as counts, mock.patch.object(MODULE, "synchronize") as waiting:
        duquant.set_execution(model)
    facts: Facts = {
        "runs": runs.count,
        "waits": counts.totals()["waits"],
        "synchronized": [str(call.args[0]) for call in waiting.call_args_list],
        "tensors": _tensors() - tensors,
        "random": torch.equal(torch.random.get_rng_state(), random),
    }
    with torch.no_grad():
        facts["equal"] = torch.equal(model(ids).logits.cpu(), before)
    return facts
