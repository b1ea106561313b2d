"""A model is measured as it was stored, or not at all: nothing in it is drawn at random."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from duquant.evaluation.loaded_model import ModelSource
from tests.chat_bench import write_chat_model
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun

pytestmark = LIGHTNING_WARNINGS
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("loaded") / "tiny")


def altered(original: Path, target: Path, alter: Callable[[Tensors], Any]) -> ModelSource:
    """A copy of a model with other tensors."""
    shutil.copytree(original, target)
    tensors = load_file(target / "model.safetensors")
    alter(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return ModelSource.find(str(target))


def test_a_missing_tensor_is_never_drawn_at_random(original: Path, tmp_path: Path) -> None:
    for name in sorted(load_file(original / "model.safetensors"))[::4]:
        source = altered(original, tmp_path / name, lambda tensors: tensors.pop(name))  # noqa: B023
        with pytest.raises(ValueError, match=f"lack {name}, .*at random"):
            source.load("float32", "cpu", "auto")  # evaluate
        with pytest.raises(ValueError, match=f"lack {name}, .*at random"):
            source.read("auto", {"": "cpu"})  # mtbench answer


def test_a_tensor_too_many_and_one_of_another_shape(original: Path, tmp_path: Path) -> None:
    norm = "model.norm.weight"
    more = altered(original, tmp_path / "a", lambda t: t.update({"model.n.weight": torch.ones(2)}))
    with pytest.raises(ValueError, match=r"the weights hold model\.n\.weight"):
        more.read("float32", {"": "cpu"})
    other = altered(original, tmp_path / "b", lambda t: t.update({norm: torch.ones(3)}))
    with pytest.raises(ValueError, match=r"b: |b cannot be loaded"):
        other.read("float32", {"": "cpu"})


def test_what_can_be_computed_may_be_stored(original: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    altered(original, tmp_path / "a", lambda t: t.update({name: torch.ones(2)})).read(
        "float32", {"": "cpu"}
    )


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_values_that_are_not_finite_in_its_dtype(
    original: Path, tmp_path: Path, value: float
) -> None:
    def plant(tensors: Tensors) -> None:
        tensors["model.norm.weight"][3] = value

    source = altered(original, tmp_path / "a", plant)
    with pytest.raises(ValueError, match=r"model\.norm\.weight are (not finite|.* --dtype)"):
        source.read("float16", {"": "cpu"})


def test_packed_weights_need_their_method(finished_run: FinishedRun, tmp_path: Path) -> None:
    shutil.copytree(finished_run.output / "model", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    ModelSource.find(str(file.parent)).read("float32", {"": "cpu"})
    for method in ("duquanu", "gptq", None):
        other = {**config["quantization_config"], "quant_method": method}
        if method is None:
            del other["quant_method"]
        file.write_text(json.dumps({**config, "quantization_config": other}))
        with pytest.raises(ValueError, match=r"quant_method is .*packed by duquant"):
            ModelSource.find(str(file.parent))
    del config["quantization_config"]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"quant_method is None.*packed by duquant"):
        ModelSource.find(str(file.parent))
