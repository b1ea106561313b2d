"""Every tensor that the product makes says where it lies, and every float one what it is made of.

A program may have set another default device, as notebooks do for their own work. A tensor without
a device of its own then lies there: a C kernel reads a pointer that is none, and a calibration
mixes devices. Here the default is "meta", whose tensors have no memory at all. In the same way
another default dtype, which vLLM sets while it loads a model, would mix dtypes.
"""

import ast
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import duquant
from duquant.config import DistillationConfig, LWCConfig, RotationConfig, RoundingConfig
from duquant.export.conversion import QuantizedSource, export_model
from duquant.export.targets.table import EXPORTERS
from duquant.ops.kernels import int4, rows, screen, transform
from tests.assets import REPOSITORY
from tests.in_process import LEARNS_ALL, LIGHTNING_WARNINGS, NO_LWC, write_text
from tests.small_run import write_small_model

pytestmark = LIGHTNING_WARNINGS
FACTORIES = (
    *("zeros", "ones", "empty", "full", "eye", "arange", "range", "linspace", "logspace"),
    *("tensor", "as_tensor", "asarray", "scalar_tensor", "rand", "randn", "randint", "randperm"),
    *("empty_strided", "empty_permuted", "tril_indices", "triu_indices", "hann_window"),
    *("sparse_coo_tensor", "Generator"),
)
"""Functions of PyTorch that put what they make on the default device (a generator: on the CPU)."""


def without_device(source: str) -> Iterator[str]:
    """Calls of factories that leave the device to chance."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(ast.Name("torch"), name), keywords=named):
                if name in FACTORIES and all(keyword.arg != "device" for keyword in named):
                    yield f"line {node.lineno}: {ast.unparse(node)}"


FLOATS = ("zeros", "ones", "empty", "full", "eye", "linspace", "logspace", "rand", "randn")
"""Of these, those that make numbers of the default dtype."""


def without_dtype(source: str) -> Iterator[str]:
    """Calls of factories that leave the dtype to chance."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(ast.Name("torch"), name), keywords=named):
                if name in FLOATS and all(keyword.arg != "dtype" for keyword in named):
                    yield f"line {node.lineno}: {ast.unparse(node)}"


OF_A_DEVICE = (
    *("synchronize", "empty_cache", "mem_get_info", "memory_allocated", "memory_reserved"),
    *("max_memory_allocated", "max_memory_reserved", "reset_peak_memory_stats", "memory_stats"),
    *("get_device_name", "get_device_capability", "get_device_properties", "current_stream"),
)
"""Functions of ``torch.cuda`` and its like that take the current GPU where none is named."""
NAMES_THE_CURRENT_ONE = REPOSITORY / "duquant" / "compute_device.py"
"""Alone may ask which GPU that is, to give it its number."""
WAITS_FOR_MARKS = REPOSITORY / "duquant" / "ops" / "copy_stream.py"
"""Waits for an event, which belongs to a device."""


def of_the_current_device(source: str) -> Iterator[str]:
    """Calls that mean the current GPU, which need not be the one that a run computes on."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(_, "current_device")):
                yield f"line {node.lineno}: {ast.unparse(node)}"
            case ast.Call(func=ast.Attribute(_, name), args=[], keywords=[]):
                if name in OF_A_DEVICE:
                    yield f"line {node.lineno}: {ast.unparse(node)}"


FILES = [REPOSITORY / "cli.py"]
FILES += [file for name in ("duquant", "callbacks") for file in (REPOSITORY / name).rglob("*.py")]


def test_every_factory_names_a_device() -> None:
    found = [f"{file}, {call}" for file in FILES for call in without_device(file.read_text())]
    assert not found
    named, unnamed = "torch.zeros(2, device='cpu')", "torch.zeros(2)"
    assert list(without_device(f"{named}\nx = [{unnamed}]")) == [f"line 2: {unnamed}"]


def test_every_factory_of_floats_names_a_dtype() -> None:
    found = [f"{file}, {call}" for file in FILES for call in without_dtype(file.read_text())]
    assert not found
    assert list(without_dtype("torch.eye(2, dtype=d)\ntorch.eye(2)")) == ["line 2: torch.eye(2)"]


def test_only_a_device_without_a_number_is_the_current_one() -> None:
    found = {file: list(of_the_current_device(file.read_text())) for file in FILES}
    assert len(found.pop(NAMES_THE_CURRENT_ONE)) == len(found.pop(WAITS_FOR_MARKS)) == 1
    assert {file: calls for file, calls in found.items() if calls} == {}
    named, unnamed = "torch.cuda.synchronize(device)", "torch.cuda.synchronize()"
    assert list(of_the_current_device(f"{named}\n{unnamed}")) == [f"line 2: {unnamed}"]


def test_none_hides_behind_an_import() -> None:
    """``from torch import zeros`` would pass the test above."""
    for file in FILES:
        imported = re.findall(r"^ *from torch import (.*)$", file.read_text(), re.MULTILINE)
        assert not set(re.split(r"[\s,()]+", " ".join(imported))) & set(FACTORIES), file


@pytest.fixture
def default_device() -> Iterator[torch.device]:
    """One whose tensors have no memory, for the time of a test."""
    torch.set_default_device("meta")
    yield torch.device("meta")
    torch.set_default_device(None)


@pytest.mark.parametrize("kernel", [int4, rows, screen, transform], ids=lambda each: each.__name__)
def test_kernels_are_checked_where_their_tensors_lie(
    kernel: Any, default_device: torch.device
) -> None:
    """The check at loading, from the beginning."""
    loaded = kernel._library()
    if loaded is None:
        pytest.skip("this machine has no such kernel")
    assert kernel._is_right(loaded)


RECIPES: dict[str, dict[str, Any]] = {
    "learns everything": {**LEARNS_ALL, "distillation": DistillationConfig(epochs=1)},
    "GPTQ": {
        "rotation": RotationConfig(block_size=16, max_steps=4, rotate_values=True),
        "lwc": NO_LWC,
        "rounding": RoundingConfig(method="gptq"),
    },
    "searched start": {
        "rotation": RotationConfig(block_size=16, selector="hadamard"),
        "lwc": LWCConfig(epochs=1, batch_size=2, initialization="search", augmented_loss=True),
    },
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("inputs")
    text = write_text(directory / "text.txt").read_text(encoding="utf-8")
    return write_small_model(directory / "model", blocks=1), text


Expected = dict[str, list[torch.Tensor]]


@pytest.fixture(scope="module")
def expected(inputs: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """What PyTorch's own defaults give, by recipe."""
    folder = tmp_path_factory.mktemp("expected")
    return {n: made(inputs, duquant.Recipe(**r), folder / n) for n, r in RECIPES.items()}


def stored(directory: Path) -> dict[str, torch.Tensor]:
    files = sorted(directory.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def used(directory: Path) -> list[torch.Tensor]:
    """Logits of both backends, and tokens that are written over a packed cache."""
    ids = torch.arange(3, 19, device="cpu").view(2, 8)
    ones, results = torch.ones_like(ids), []
    for backend in ("reference", "auto"):
        with torch.device("cpu"):  # transformers refuses to load where the default has no memory
            model = AutoModelForCausalLM.from_pretrained(directory)
        duquant.set_execution(model, backend)  # type: ignore[arg-type]
        with torch.no_grad():
            results.append(model(ids).logits)
    options = {"max_new_tokens": 3, "do_sample": False, "attention_mask": ones}
    cache = duquant.PackedCache(model)
    return [*results, model.generate(ids, past_key_values=cache, **options)]


def exported(directory: Path, target: Path) -> list[torch.Tensor]:
    """Tensors of an export that computes them anew."""
    export_model(QuantizedSource(directory), target, EXPORTERS["dequantized"]())
    tensors = stored(target)
    return [tensors[name] for name in sorted(tensors)]


def made(inputs: tuple[Path, str], recipe: duquant.Recipe, output: Path) -> list[torch.Tensor]:
    """A model calibrated, written, exported, loaded and used."""
    source, text = inputs
    directory = duquant.quantize(
        source, text, recipe, output_dir=output, num_samples=4, sequence_length=16
    )
    tensors = stored(directory)
    calibrated = [tensors[name] for name in sorted(tensors)]
    return [*calibrated, *used(directory), *exported(directory, output.with_suffix(".export"))]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What numbers are that nobody gives a dtype: vLLM sets its model's while it loads."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device_meta() -> Iterator[None]:
    """A device whose tensors have no memory."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS = {
    "meta": default_device_meta,
    "bfloat16": partial(default_dtype, torch.bfloat16),
    "float64": partial(default_dtype, torch.float64),
}


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("name", RECIPES)
def test_another_default_changes_no_bit(
    name: str, default: str, expected: Expected, inputs: tuple[Path, str], tmp_path: Path
) -> None:
    with DEFAULTS[default]():
        found = made(inputs, duquant.Recipe(**RECIPES[name]), tmp_path / "found")
    assert len(found) == len(expected[name])
    for ours, theirs in zip(found, expected[name], strict=True):
        assert ours.device.type == "cpu"
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
