"""vLLM's linears hold the modules that transformers runs, by other names: same bits come out.

None of this needs vLLM.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from duquant.config import FormatConfig
from duquant.export.quantization_config import DuquantConfig
from duquant.model.execution import configure_execution, transform_of
from duquant.model.structure import SITES
from duquant.nn.execution import Execution
from duquant.serving.fused_linear import FusedLinear
from duquant.serving.meta_blocks import fused_linear, meta_blocks
from duquant.serving.quantized_rotary import QuantizedRotary
from duquant.serving.stored_names import CHILD, FUSED, renaming_rules
from tests.planted_biases import write_biased
from tests.quantized_directory import fitting_recipe, write_quantized
from tests.tiny_models import FAMILIES

TOKENS = 5


def renamed(name: str) -> str:
    for pattern, new in renaming_rules().items():
        name = pattern.sub(new, name)
    return name


def load_fused(directory: Path, tensors: Mapping[str, Tensor]) -> dict[str, FusedLinear]:
    """The linears of the first block, with tensors that are named as they are stored."""
    stored = json.loads((directory / "config.json").read_text())["quantization_config"]
    (block, *_) = meta_blocks(directory, DuquantConfig(**stored), torch.float32)
    fused = {name: fused_linear(block, name).to_empty(device="cpu") for name in FUSED}
    by_parent: dict[str, dict[str, nn.Module]] = {"self_attn": {}, "mlp": {}}
    for name, module in fused.items():
        parent, _, linear = name.partition(".")
        by_parent[parent][linear] = nn.ModuleDict({CHILD: module})
    whole = nn.ModuleDict({parent: nn.ModuleDict(each) for parent, each in by_parent.items()})
    named = {renamed(f".{name}")[1:]: tensor for name, tensor in tensors.items()}
    found = {name: tensor for name, tensor in named.items() if CHILD in name}
    rest = named.keys() - found.keys()
    assert all(name.endswith("norm.weight") for name in rest), rest
    whole.load_state_dict(found, strict=True)
    return fused


def first_block(directory: Any) -> tuple[Any, dict[str, FusedLinear]]:
    block = directory.load().model.layers[0]
    return block, load_fused(directory.path, block.state_dict())


@pytest.mark.parametrize("backend", ["reference", "integer"])
@pytest.mark.parametrize("family", ["llama-grouped", "llama-biases", "qwen2", "qwen3"])
def test_fused_linears_give_the_bits_of_the_modules_in_transformers(
    family: str, backend: Any, tmp_path: Path
) -> None:
    block, fused = first_block(write_quantized(tmp_path, FAMILIES[family]))
    configure_execution([block], Execution(backend))
    for site in SITES:
        width = transform_of(block, site).width
        x = torch.randn(TOKENS, width, generator=torch.Generator().manual_seed(3))
        inputs = transform_of(block, site)(x)
        for linear in map(block.get_submodule, site.linears):
            linear.site = None
        name = fused_name(site.linears[0])
        assert fused[name].make_ready(Execution(backend))
        parent = name.partition(".")[0]
        expected = [block.get_submodule(f"{parent}.{part}_proj")(inputs) for part in FUSED[name]]
        if name == "self_attn.qkv_proj":
            expected[2] = quantized_value(block.self_attn, expected[2])
        assert torch.equal(fused[name](x), torch.cat(expected, dim=-1)), name


def fused_name(linear: str) -> str:
    """``mlp.up_proj`` -> ``mlp.gate_up_proj``."""
    parent, _, name = linear.partition(".")
    part = name.removesuffix("_proj")
    (fused,) = [f for f, parts in FUSED.items() if f.startswith(parent) and part in parts]
    return fused


def quantized_value(attention: Any, value: Tensor) -> Tensor:
    quantizer = attention.attention_quantizer
    heads = value.view(1, TOKENS, -1, attention.head_dim).transpose(1, 2)
    bias = quantizer.biases(None, None, ["value"]).value if quantizer.biases else None
    quantized: Tensor = quantizer.quantized_value(heads, bias)
    return quantized.transpose(1, 2).reshape(TOKENS, -1)


class Rotary(nn.Module):
    """A rotary embedding with the attributes of vLLM's, that rotates as transformers does."""

    def __init__(self, head_dim: int, positions: int) -> None:
        super().__init__()
        frequencies = 100.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        angles = torch.arange(positions)[:, None] * frequencies
        self.cos_sin_cache = torch.cat([angles.cos(), angles.sin()], dim=-1)
        self.rotary_dim = self.head_dim = head_dim
        self.is_neox_style = True

    def embeddings(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = (
            torch.cat([half, half], dim=-1)[None]
            for half in self.cos_sin_cache[positions].chunk(2, dim=-1)
        )
        return cos, sin

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        heads = [x.view(1, len(x), -1, self.head_dim).transpose(1, 2) for x in (query, key)]
        rotated = apply_rotary_pos_emb(*heads, *self.embeddings(positions))
        return tuple(x.transpose(1, 2).reshape(query.shape[0], -1) for x in rotated)


def test_queries_and_keys_are_quantized_as_in_transformers(tmp_path: Path) -> None:
    block, fused = first_block(write_biased(tmp_path, FAMILIES["qwen2"]))
    quantizer, head_dim = block.self_attn.attention_quantizer, block.self_attn.head_dim
    assert quantizer.biases is not None
    rotary, positions = Rotary(head_dim, 20), torch.tensor([0, 1, 7, 3, 19])
    generator = torch.Generator().manual_seed(4)
    query, key = (torch.randn(TOKENS, n * head_dim, generator=generator) for n in (4, 2))
    attention = fused["self_attn.qkv_proj"].attention
    assert attention is not None
    attention.compute_hadamard()
    found = QuantizedRotary(rotary, attention)(positions, query, key)

    biases = quantizer.biases(rotary.embeddings(positions), apply_rotary_pos_emb)
    heads = [x.view(1, TOKENS, -1, head_dim).transpose(1, 2) for x in rotary(positions, query, key)]
    expected = [
        quantizer.quantized_query(heads[0], biases.query),
        quantizer.quantized_key(heads[1], biases.key),
    ]
    assert len((expected[0] - quantizer.rotate(biases.query))[0, 0, 0].unique()) > 2
    for one, other in zip(found, expected, strict=True):
        flat = other.transpose(1, 2).reshape(TOKENS, -1)
        assert torch.allclose(one, flat, rtol=1e-6, atol=1e-4)  # biases are 300


def test_biases_that_nobody_can_rotate_are_refused(tmp_path: Path) -> None:
    _, fused = first_block(write_biased(tmp_path, FAMILIES["qwen2"]))
    attention = fused["self_attn.qkv_proj"].attention
    assert attention is not None
    with pytest.raises(ValueError, match="cannot follow a Identity"):
        QuantizedRotary(nn.Identity(), attention)


@pytest.mark.parametrize("form", ["integer", "mxfp4", "nvfp4"])
def test_the_default_dtype_changes_nothing(form: str, tmp_path: Path) -> None:
    """vLLM sets the model's dtype as the default while it loads the weights."""
    numbers = FormatConfig(format=form)
    recipe = replace(fitting_recipe({}), weights=numbers, activations=numbers)
    directory = write_quantized(tmp_path, FAMILIES["qwen2"], recipe)
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            fused = first_block(directory)[1]
            for each in fused.values():
                each.make_ready(Execution("auto" if form != "integer" else "integer"))
        finally:
            torch.set_default_dtype(torch.float32)
        x = torch.randn(TOKENS, 96, generator=torch.Generator().manual_seed(3))
        outputs.append([each(x[:, : each.site.width]) for each in fused.values()])
    for one, other in zip(*outputs, strict=True):
        assert torch.equal(one, other)
