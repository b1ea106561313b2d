"""Devices that share a model compute, side by side, the bits that one computes.

None of this needs vLLM.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from duquant.config import FormatConfig, Recipe
from duquant.nn.execution import Execution
from duquant.serving.fused_linear import FusedLinear
from duquant.serving.quantized_rotary import QuantizedRotary
from duquant.serving.refusals import require_shares
from duquant.serving.row_shards import Rank, cut_rows
from tests.planted_biases import write_biased
from tests.quantized_directory import fitting_recipe, write_quantized
from tests.serving.test_fused_linear import TOKENS, Rotary, first_block
from tests.tiny_models import FAMILIES

X = torch.randn(TOKENS, 96, generator=torch.Generator().manual_seed(3))
NVFP4 = FormatConfig(format="nvfp4")
RECIPE = fitting_recipe({})
RECIPES: dict[str, Recipe] = {
    "4 bits": RECIPE,
    "3 bits": replace(RECIPE, weight_bits=3),
    "groups that cross the middle of 96 inputs": replace(RECIPE, group_size=32),
    "nvfp4": replace(RECIPE, weights=NVFP4, activations=NVFP4),
    "not quantized": replace(RECIPE, weight_bits=16),
}
QKV = "self_attn.qkv_proj"


def on_rank(fused: FusedLinear, sizes: list[int], rank: Rank, backend: Any) -> FusedLinear:
    """What a device holds of a loaded linear; what is cut names the rows of what is stored."""
    stored = fused.state_dict()
    cut = cut_rows(fused, sizes, rank)
    for name, own in fused.state_dict().items():
        assert torch.equal(own, stored[name][cut.get(name, slice(None))]), name
    assert fused.out_features == sizes
    fused.make_ready(Execution(backend))
    return fused


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("backend", ["reference", "integer"])
def test_outputs_of_two_devices_are_those_of_one(recipe: str, backend: Any, tmp_path: Path) -> None:
    if backend == "integer" and recipe in ("nvfp4", "not quantized"):
        pytest.skip("not integers")
    directory = write_quantized(tmp_path, FAMILIES["qwen2"], RECIPES[recipe])
    whole, *halves = (first_block(directory)[1] for _ in range(3))
    for name, one in whole.items():
        x, sizes = X[:, : one.site.width], [size // 2 for size in one.out_features]
        one.make_ready(Execution(backend))
        parts = [
            on_rank(half[name], sizes, Rank(index, 2), backend)(x).split(sizes, dim=-1)
            for index, half in enumerate(halves)
        ]
        joined = torch.cat([part for pair in zip(*parts, strict=True) for part in pair], dim=-1)
        assert torch.equal(joined, one(x)), name


def test_each_device_adds_its_own_biases_and_may_share_a_head(tmp_path: Path) -> None:
    """Four devices have a head of Q each, and two of them the same head of K and V."""
    directory = write_biased(tmp_path, FAMILIES["qwen2"])
    one = first_block(directory)[1][QKV]
    one.make_ready(Execution("reference"))
    expected = attend(one, [4, 2, 2])
    for index in range(4):
        fused = on_rank(first_block(directory)[1][QKV], [16, 16, 16], Rank(index, 4), "reference")
        for heads, found, kind in zip(expected, attend(fused, [1, 1, 1]), "qkv", strict=True):
            head = index if kind == "q" else index // 2
            assert torch.equal(found[:, 0], heads[:, head]), kind


def attend(fused: FusedLinear, heads: list[int]) -> list[Tensor]:
    """Q and K behind RoPE, and V, by heads."""
    assert fused.attention is not None
    head_dim = fused.attention.head_dim
    query, key, value = fused(X[:, :64]).split([number * head_dim for number in heads], dim=-1)
    positions = torch.tensor([0, 1, 7, 3, 19])
    query, key = QuantizedRotary(Rotary(head_dim, 20), fused.attention)(positions, query, key)
    return [part.view(TOKENS, -1, head_dim) for part in (query, key, value)]


def test_rows_that_devices_cannot_share_are_refused() -> None:
    assert Rank(3, 4).rows(32, 16) == slice(16, 32)
    for total, size in ((32, 12), (48, 16), (8, 16)):
        with pytest.raises(ValueError, match=f"4 devices cannot hold {size} of {total} outputs"):
            Rank(0, 4).rows(total, size)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_attention_heads": 9}, "does not divide the model's 9 attention heads"),
        ({"num_key_value_heads": 3}, "is no multiple of the model's 3 heads of K and V"),
        ({"num_key_value_heads": 6}, "does not divide the model's 6 heads of K and V"),
        ({"hidden_size": 30}, "does not divide the model's 30 hidden channels"),
        ({"intermediate_size": 34}, "does not divide the model's 34 channels of the MLP"),
    ],
)
def test_models_that_devices_cannot_share_are_refused(
    changes: dict[str, int], complaint: str
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    require_shares(SimpleNamespace(**sizes), 4)
    with pytest.raises(ValueError, match=f"--tensor-parallel-size is 4, which {complaint}"):
        require_shares(SimpleNamespace(**{**sizes, **changes}), 4)
