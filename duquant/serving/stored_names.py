"""Where vLLM's modules keep what a model directory stores: names of tensors, old to new.

vLLM computes q, k and v by one module, ``qkv_proj``, and gate and up by another. Such a module has
a child ``duquant``, a :class:`duquant.serving.fused_linear.FusedLinear`, with the site's transform
and each linear by its first letters. A norm is vLLM's own: the site that stands behind it in
transformers belongs to the linears that read it.

    self_attn.q_proj.packed                  self_attn.qkv_proj.duquant.linears.q.packed
    self_attn.attention_quantizer.key.peak   self_attn.qkv_proj.duquant.attention.key.peak
    input_layernorm.site.transform.rotations self_attn.qkv_proj.duquant.site.transform.rotations
    input_layernorm.norm.weight              input_layernorm.weight
    self_attn.o_proj.site.mean               self_attn.o_proj.duquant.site.mean

The rules are applied in this order, and to a name that they made they do nothing more: models of
vLLM load in two steps, and both apply them.
"""

import re

FUSED = {
    "self_attn.qkv_proj": ("q", "k", "v"),
    "self_attn.o_proj": ("o",),
    "mlp.gate_up_proj": ("gate", "up"),
    "mlp.down_proj": ("down",),
}
"""vLLM's linears of a decoder block and the linears they are made of, in the order of outputs."""
CHILD = "duquant"
"""Name of the child that holds them."""
READERS = {
    "input_layernorm": "self_attn.qkv_proj",
    "post_attention_layernorm": "mlp.gate_up_proj",
}
"""Norms with a site behind them, and what reads it."""


def renaming_rules() -> dict[re.Pattern[str], str]:
    """Patterns of stored names and what they become."""
    rules = {
        # what MistralForCausalLM makes of "….norm.weight", which it takes for the last norm
        r"layermodel\.norm\.model\.norm\.weight$": "layernorm.norm.weight",
        r"\.site\.(rotations|permutations)$": r".site.transform.\1",  # format version 2
        r"layernorm\.norm\.weight$": "layernorm.weight",
        r"\.self_attn\.attention_quantizer\.": f".self_attn.qkv_proj.{CHILD}.attention.",
    }
    for norm, reader in READERS.items():
        rules[rf"\.{norm}\.site\."] = f".{reader}.{CHILD}.site."
    for fused, linears in FUSED.items():
        parent = fused.partition(".")[0]
        for linear in linears:
            rules[rf"\.{parent}\.{linear}_proj\.site\."] = f".{fused}.{CHILD}.site."
            rules[rf"\.{parent}\.{linear}_proj\.(?!{CHILD}\.)"] = (
                f".{fused}.{CHILD}.linears.{linear}."
            )
    return {re.compile(pattern): new for pattern, new in rules.items()}
