"""What makes a block acceptable, and which sizes fit it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from duquant.config import Recipe, RotationConfig
from duquant.model.structure import (
    LINEARS,
    SITES,
    linear_shapes,
    require_decoder_block,
    require_fitting_widths,
    short_name,
)
from tests.tiny_models import FAMILIES, tiny_model


@pytest.fixture
def block() -> nn.Module:
    layer: nn.Module = tiny_model(FAMILIES["llama-head-24"]).model.layers[0]
    return layer


def test_every_linear_belongs_to_one_site(block: nn.Module) -> None:
    plain = {name for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    assert sorted(LINEARS) == sorted(plain)
    assert [site.name for site in SITES if site.follows_norm] == ["attention_input", "mlp_input"]


def test_sites_name_the_widths_of_their_linears(block: nn.Module) -> None:
    shapes = linear_shapes(block)
    assert shapes["self_attn.q_proj"] == (96, 64)
    assert shapes["self_attn.v_proj"] == (48, 64)
    assert shapes["mlp.down_proj"] == (64, 96)
    for site in SITES:
        assert len({shapes[linear][1] for linear in site.linears}) == 1


@pytest.mark.parametrize("family", ["llama", "llama-biases", "qwen2", "qwen3", "gemma", "granite"])
def test_known_blocks_are_accepted(family: str) -> None:
    for layer in tiny_model(FAMILIES[family]).model.layers:
        require_decoder_block(layer, family)


def drop_norm(block: nn.Module) -> None:
    del block.post_attention_layernorm


def drop_projection(block: nn.Module) -> None:
    del block.get_submodule("self_attn").k_proj


def add_router(block: nn.Module) -> None:
    block.get_submodule("mlp").router = nn.Linear(4, 4)


def add_norm(block: nn.Module) -> None:
    block.third_norm = nn.LayerNorm(4)


def weightless_norm(block: nn.Module) -> None:
    block.input_layernorm = nn.RMSNorm(64, elementwise_affine=False)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (drop_norm, "lacks post_attention_layernorm"),
        (drop_projection, r"lacks self_attn\.k_proj"),
        (add_router, r"has unknown modules mlp\.router"),
        (add_norm, "has unknown modules third_norm"),
        (weightless_norm, r"lacks input_layernorm\.weight"),
    ],
)
def test_other_blocks_are_refused_by_name(
    block: nn.Module, change: Callable[[nn.Module], None], complaint: str
) -> None:
    change(block)
    with pytest.raises(ValueError, match=f"toy: a LlamaDecoderLayer .*{complaint}"):
        require_decoder_block(block, "toy")


def test_a_linear_of_another_kind_is_refused(block: nn.Module) -> None:
    block.get_submodule("mlp").up_proj = nn.Identity()
    with pytest.raises(ValueError, match=r"mlp\.up_proj is a Identity"):
        require_decoder_block(block, "toy")


@pytest.mark.parametrize("size", [2, 8, 16, 32])
def test_sizes_that_divide_all_widths_fit(block: nn.Module, size: int) -> None:
    require_fitting_widths(block, Recipe(rotation=RotationConfig(block_size=size)))
    require_fitting_widths(block, Recipe(rotation=RotationConfig(block_size=16), group_size=size))


@pytest.mark.parametrize("size", [64, 48, 128])
def test_other_sizes_are_refused_with_those_that_fit(block: nn.Module, size: int) -> None:
    complaint = rf"{size} does not divide the input width \d+ of .*: 2, 4, 8, 16, 32$"
    with pytest.raises(ValueError, match=rf"^rotation\.block_size {complaint}"):
        require_fitting_widths(block, Recipe(rotation=RotationConfig(block_size=size)))
    recipe = Recipe(rotation=RotationConfig(block_size=16), group_size=size)
    with pytest.raises(ValueError, match=f"^group_size {complaint}"):
        require_fitting_widths(block, recipe)


def test_no_block_size_is_asked_for_without_rotation(block: nn.Module) -> None:
    recipe = Recipe(rotation=RotationConfig(selector="none", block_size=128))
    require_fitting_widths(block, recipe)


def test_widths_are_known_without_weights(block: nn.Module) -> None:
    expected = linear_shapes(block)
    assert linear_shapes(block.to(torch.device("meta"))) == expected


def test_short_names() -> None:
    assert short_name("self_attn.q_proj") == "q_proj"
    assert short_name("down_proj") == "down_proj"
