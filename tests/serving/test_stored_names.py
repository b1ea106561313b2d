"""Stored names become names of vLLM's modules, and a second time nothing happens to them."""

import pytest

from duquant.serving.stored_names import renaming_rules

BLOCK = "model.layers.3."
QKV, GATE_UP = "self_attn.qkv_proj.duquant.", "mlp.gate_up_proj.duquant."
NAMES = {
    "self_attn.k_proj.packed": f"{QKV}linears.k.packed",
    "self_attn.attention_quantizer.biases.value": f"{QKV}attention.biases.value",
    "self_attn.attention_quantizer.key.peak": f"{QKV}attention.key.peak",
    "input_layernorm.site.transform.rotations": f"{QKV}site.transform.rotations",
    "input_layernorm.site.rotations": f"{QKV}site.transform.rotations",
    "input_layernorm.norm.weight": "input_layernorm.weight",
    "input_layermodel.norm.model.norm.weight": "input_layernorm.weight",
    "post_attention_layernorm.site.mean": f"{GATE_UP}site.mean",
    "self_attn.o_proj.bias": "self_attn.o_proj.duquant.linears.o.bias",
    "self_attn.o_proj.site.online_scale": "self_attn.o_proj.duquant.site.online_scale",
    "mlp.up_proj.scale": f"{GATE_UP}linears.up.scale",
    "mlp.down_proj.site.permutations": "mlp.down_proj.duquant.site.transform.permutations",
    "self_attn.q_norm.weight": "self_attn.q_norm.weight",
}


def rename(name: str) -> str:
    for pattern, new in renaming_rules().items():
        name = pattern.sub(new, name)
    return name


@pytest.mark.parametrize("stored", NAMES)
def test_names_of_a_block(stored: str) -> None:
    once = rename(BLOCK + stored)
    assert once == BLOCK + NAMES[stored]
    assert rename(once) == once


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"]
)
def test_names_outside_of_blocks_stay(name: str) -> None:
    assert rename(name) == name


def test_no_new_name_looks_like_a_part_that_vllm_would_fuse() -> None:
    parts = (".q_proj", ".k_proj", ".v_proj", ".gate_proj", ".up_proj")
    assert not any(part in new for new in NAMES.values() for part in parts)
