"""Stored values that cannot be are refused although every checksum is right, by either reader."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from duquant.export.checksums import file_checksums
from duquant.export.model_directory import ModelDirectory
from tests.quantized_directory import QuantizedDirectory, logits, write_quantized
from tests.tiny_models import FAMILIES, token_ids

BLOCK, OUTSIDE = "model-block-00001.safetensors", "model-outside.safetensors"
PREFIX = "model.layers.1."
Edit = Callable[[Tensor], Tensor | None]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> QuantizedDirectory:
    """Grouped heads and a scale per query channel: one site divides online."""
    return write_quantized(tmp_path_factory.mktemp("llama"), FAMILIES["llama-biases"])


def alter(directory: Path, file: str, name: str, edit: Edit) -> None:
    """Change a tensor as its writer would have: the checksums are those of the changed one."""
    path = directory / file
    tensors = load_file(path)
    edited = edit(tensors[name])
    tensors[name] = tensors[name] if edited is None else edited
    save_file(tensors, path)
    checksums = file_checksums([path])
    save_file(tensors, path, metadata={"format": "pt", **checksums})
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"]["checksums"] |= checksums
    (directory / "config.json").write_text(json.dumps(config))


def put(value: float, place: int = -1) -> Edit:
    def edit(tensor: Tensor) -> None:
        tensor.view(-1)[place] = value

    return edit


def cast(dtype: torch.dtype) -> Edit:
    return lambda tensor: tensor.to(dtype)


def beyond_32_bits(tensor: Tensor) -> Tensor:
    """Its last channel is 2³² + k: cast to 32 bits it would be the right one."""
    wide = tensor.long()
    wide[0, -1] += 2**32
    return wide


UP, DOWN = f"{PREFIX}mlp.up_proj", f"{PREFIX}mlp.down_proj"
SITE = f"{PREFIX}mlp.down_proj.site.transform"
REFUSED: dict[str, tuple[str, Edit]] = {
    **{f"scale {value}": (f"{UP}.scale", put(value)) for value in (0.0, -1e-3, -0.0)},
    **{f"scale {v}": (f"{DOWN}.scale", put(v, 3)) for v in (torch.nan, torch.inf, -torch.inf)},
    "scale in half": (f"{UP}.scale", cast(torch.float16)),
    "zero below": (f"{UP}.zero", put(-10001)),
    "zero above": (f"{DOWN}.zero", put(16385, 7)),
    "zero of 32 bits": (f"{UP}.zero", cast(torch.int32)),
    "zero of floats": (f"{UP}.zero", cast(torch.float32)),
    "channel twice": (f"{SITE}.permutations", put(0, -1)),
    "channel below": (f"{SITE}.permutations", put(-1, 5)),
    "channel above": (f"{SITE}.permutations", put(96, 5)),
    "channel far above": (f"{SITE}.permutations", put(2**31 - 1, 5)),
    "channel beyond 32 bits": (f"{SITE}.permutations", beyond_32_bits),
    "permutation of floats": (f"{SITE}.permutations", cast(torch.float32)),
    "rotation nan": (f"{PREFIX}input_layernorm.site.transform.rotations", put(torch.nan, 11)),
    "rotation infinite": (f"{SITE}.rotations", put(-torch.inf, 0)),
    "rotation in half": (f"{SITE}.rotations", cast(torch.bfloat16)),
    "packed of 16 bits": (f"{UP}.packed", cast(torch.int16)),
    "norm": (f"{PREFIX}input_layernorm.norm.weight", put(torch.inf)),
    "norm of integers": (f"{PREFIX}input_layernorm.norm.weight", cast(torch.int32)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_it_is_used(
    case: str, written: QuantizedDirectory, tmp_path: Path
) -> None:
    name, edit = REFUSED[case]
    directory = Path(shutil.copytree(written.path, tmp_path / "altered"))
    alter(directory, BLOCK, name, edit)
    whole = rf"{BLOCK}: {name} (holds|is stored as).*must be"
    with pytest.raises(ValueError, match=whole):
        AutoModelForCausalLM.from_pretrained(directory)
    short = rf"{BLOCK}: {name.removeprefix(PREFIX)} (holds|is stored as).*must be"
    with pytest.raises(ValueError, match=short) as told:
        ModelDirectory(directory, written.recipe).read_block(1, written.decoder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        (f"{SITE}.permutations", cast(torch.int64)),
        (f"{SITE}.permutations", lambda tensor: tensor.flip(1)),
        (f"{UP}.scale", put(1e-38)),
        (f"{UP}.zero", put(-10000)),
        (f"{UP}.packed", put(255)),
    ],
)
def test_what_can_be_loads_and_runs(
    name: str, edit: Edit, written: QuantizedDirectory, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(written.path, tmp_path / "altered"))
    alter(directory, BLOCK, name, edit)
    assert logits(AutoModelForCausalLM.from_pretrained(directory), token_ids()).isfinite().all()
