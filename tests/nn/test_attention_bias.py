"""Biases of Q, K and V are added after the quantization, rotated as the model itself rotates."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from duquant.config import ClippingConfig, Recipe, RotationConfig, SmoothingConfig
from duquant.model import surgery
from duquant.model.decoder import Decoder
from duquant.nn import attention
from duquant.nn.attention import BIASES
from duquant.nn.attention_bias import RotatedBiases
from duquant.nn.attention_hook import quantize_before_cache
from duquant.nn.attention_quantizer import AttentionQuantizer
from tests.block_by_block import CPU, quantize_decoder, run_blocks, small_recipe
from tests.planted_biases import BIASED, LARGE, SCALED, biased_model
from tests.tiny_models import FAMILIES, token_ids, write_tiny_model

PLAIN = Recipe(
    weight_bits=16,
    activation_bits=16,
    query_bits=13,
    key_bits=13,
    value_bits=13,
    smoothing=SmoothingConfig(enabled=False),
    rotation=RotationConfig(selector="none", block_size=16),
    clipping=ClippingConfig(activation_ratio=1.0),
)
"""Q, K and V alone, in so many bits that only the bias could be lost in a level."""
MODELS: dict[str, Mapping[str, Any]] = {
    **BIASED,
    **{
        f"qwen2, {name}": {**BIASED["qwen2"], "rope_parameters": rope}
        for name, rope in SCALED.items()
    },
}
Heads = list[tuple[Tensor, Tensor, Tensor]]


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> Heads:
    """Q, K and V of every attention from now on, as they are attended with."""
    seen: Heads = []
    attend = attention.sdpa_attention_forward

    def record(module: nn.Module, *heads: Tensor, **options: Any) -> Any:
        seen.append(heads[:3])
        return attend(module, *heads, **options)

    monkeypatch.setattr(attention, "sdpa_attention_forward", record)
    return seen


def decoder_of(options: Mapping[str, Any], directory: Path, bias: float = LARGE) -> Decoder:
    biased_model(options, bias=bias).save_pretrained(directory)
    return Decoder(str(directory), torch.float32)


def keep_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantize as format version 2 did: with the biases."""
    monkeypatch.setattr(surgery, "separable_biases", lambda *_: [])


@pytest.mark.parametrize("name", MODELS)
def test_what_is_attended_with_is_what_the_model_computes(
    name: str, attended: Heads, tmp_path: Path
) -> None:
    """Rotated biases, layers without rotation, interleaved channels, scaled frequencies."""
    decoder = decoder_of(MODELS[name], tmp_path)
    run_blocks(decoder, token_ids())
    plain = attended.copy()
    blocks = quantize_decoder(decoder, PLAIN, token_ids(seed=1))
    attended.clear()
    run_blocks(decoder, token_ids(), [block.layer for block in blocks])
    for block, (query, key, value), expected in zip(blocks, attended, plain, strict=True):
        quantizer = block.layer.self_attn.attention_quantizer
        assert isinstance(quantizer, AttentionQuantizer)
        projections = (block.linears[f"self_attn.{p}_proj"] for p in "qkv")
        assert [p.bias for p in projections] == [None, None, None]
        assert float(expected[1].abs().max()) > LARGE / 2
        # Half a level of 13 bits over a range of 30, which the next block amplifies; with the bias
        # in it, half a level would be 0.04.
        close = {"rtol": 0, "atol": 4e-3 if block is blocks[0] else 4e-2}
        torch.testing.assert_close(query, quantizer.rotate(expected[0]), **close)
        torch.testing.assert_close(key, quantizer.rotate(expected[1]), **close)
        torch.testing.assert_close(value, expected[2], **close)


def test_with_the_bias_in_it_a_key_is_coarse(
    attended: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the tolerance above would prove nothing."""
    keep_biases(monkeypatch)
    decoder = decoder_of(BIASED["qwen2"], tmp_path)
    run_blocks(decoder, token_ids())
    expected = attended.copy()[0][1]
    (block, _) = quantize_decoder(decoder, PLAIN, token_ids(seed=1))
    attended.clear()
    block.layer(decoder.embed(token_ids(), CPU), **decoder.contexts(24, CPU)[0])
    rotated = block.layer.self_attn.attention_quantizer.rotate(expected)
    assert (attended[0][1] - rotated).abs().max() > 1e-2


def logit_error(options: Mapping[str, Any], directory: Path, bias: float) -> float:
    """Of W8A8 with K at 4 bits, relative to the model itself."""
    decoder = decoder_of(options, directory, bias)
    recipe = replace(small_recipe(8), key_bits=4)
    blocks = quantize_decoder(decoder, recipe, token_ids(seed=1))
    expected = run_blocks(decoder, token_ids())
    logits = run_blocks(decoder, token_ids(), [block.layer for block in blocks])
    return float((logits - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ["qwen2", "llama", "ernie4_5"])
def test_a_large_bias_costs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [logit_error(BIASED[name], tmp_path / str(bias), bias) for bias in (0.0, LARGE)]
    # The bias turns by a few degrees over 24 positions, so it is another model by a little.
    assert errors[1] < 1.5 * errors[0]
    keep_biases(monkeypatch)
    assert logit_error(BIASED[name], tmp_path / "kept", LARGE) > 2 * errors[1]


def test_at_16_bits_a_bias_stays_where_it_was(tmp_path: Path) -> None:
    decoder = decoder_of(BIASED["qwen2"], tmp_path)
    recipe = replace(small_recipe(), key_bits=16)
    for block in quantize_decoder(decoder, recipe, token_ids(seed=1)):
        biases = block.layer.self_attn.attention_quantizer.biases
        assert {name for name, _ in biases.named_buffers()} == {"query", "value"}
        assert block.linears["self_attn.k_proj"].bias is not None
    for block in quantize_decoder(decoder, small_recipe(16), token_ids(seed=1)):
        assert block.layer.self_attn.attention_quantizer.biases is None


def test_behind_a_norm_a_bias_is_no_term(tmp_path: Path) -> None:
    options = {**FAMILIES["qwen3"], "attention_bias": True}
    decoder = Decoder(str(write_tiny_model(tmp_path, options)), torch.float32)
    for block in quantize_decoder(decoder, small_recipe(), token_ids(seed=1)):
        biases = block.layer.self_attn.attention_quantizer.biases
        assert {name for name, _ in biases.named_buffers()} == {"value"}
        assert block.linears["self_attn.k_proj"].bias is not None


def test_without_biases_none_are_handed_on(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, FAMILIES["llama"])
    for block in quantize_decoder(Decoder(str(path), torch.float32), small_recipe(), token_ids()):
        attention = block.layer.self_attn
        assert attention.attention_quantizer.biases is None
        given: dict[str, Any] = {"past_key_values": None, "position_embeddings": None}
        _, handed_on = quantize_before_cache(attention, (), given)
        assert handed_on == {**given, BIASES: (RotatedBiases(), False)}


def test_attention_that_gets_no_positions_is_refused(tmp_path: Path) -> None:
    decoder = decoder_of(BIASED["qwen2"], tmp_path)
    (block, _) = quantize_decoder(decoder, small_recipe(), token_ids(seed=1))
    hidden, context = decoder.embed(token_ids(), CPU), decoder.contexts(24, CPU)[0]
    embeddings = context.pop("position_embeddings")
    with pytest.raises(ValueError, match="Qwen2Attention was called without position_embeddings"):
        block.layer.self_attn(hidden, embeddings, **context)
