"""``attn_implementation`` chooses what computes attention, not whether its heads are quantized."""

import copy
import pickle
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention

import duquant
from duquant.nn.attention_quantizer import ATTENTION_NAME, AttentionQuantizer
from tests.quantized_directory import QuantizedDirectory, logits, write_quantized
from tests.tiny_models import FAMILIES, token_ids

IDS = token_ids()
FAMILY_NAMES = ["llama-grouped", "mistral-sliding", "qwen3", "gemma"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> QuantizedDirectory:
    return write_quantized(tmp_path_factory.mktemp("llama"), FAMILIES["llama-grouped"])


def reference(model: Any) -> Any:
    duquant.set_execution(model, "reference")
    return model


def quantizer_calls(model: Any) -> list[int]:
    """Counts the quantizer's calls from now on, in its only entry."""
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    for module in model.modules():
        if isinstance(module, AttentionQuantizer):
            module.register_forward_hook(count)
    return calls


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_implementation_gets_quantized_heads(family: str, tmp_path: Any) -> None:
    model = reference(write_quantized(tmp_path, FAMILIES[family]).load())
    expected, calls = logits(model, IDS), quantizer_calls(model)
    for name in ("eager", "sdpa", ATTENTION_NAME):
        model.set_attn_implementation(name)
        output = logits(model, IDS)
        assert calls == [len(model.model.layers)]
        calls[0] = 0
        # Scores are rounded otherwise, which now and then moves an activation to the next level.
        torch.testing.assert_close(output, expected, rtol=0, atol=0.05)
        if name != "eager":
            assert torch.equal(output, expected)


@pytest.mark.parametrize("name", ["eager", "sdpa", ATTENTION_NAME, None])
def test_it_can_be_asked_for_while_loading(name: str | None, written: QuantizedDirectory) -> None:
    model = reference(written.load(attn_implementation=name))
    calls = quantizer_calls(model)
    assert model.config._attn_implementation == (name or "sdpa")
    torch.testing.assert_close(
        logits(model, IDS), logits(reference(written.load()), IDS), rtol=0, atol=0.05
    )
    assert calls == [2]


def test_eager_gives_the_weights_of_quantized_attention(written: QuantizedDirectory) -> None:
    model = written.load(attn_implementation="eager")
    with torch.no_grad():
        weights = model(IDS, output_attentions=True).attentions
    assert len(weights) == 2
    for each in weights:
        torch.testing.assert_close(each.sum(dim=-1), torch.ones(each.shape[:-1]))
        assert each.triu(1).eq(0).all(), "nobody sees the future"


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_the_packed_cache_works_with_every_implementation(
    name: str, written: QuantizedDirectory
) -> None:
    model = written.load()
    model.set_attn_implementation(name)
    options = {"max_new_tokens": 5, "do_sample": False}
    expected = model.generate(IDS, **options)
    packed = model.generate(IDS, past_key_values=duquant.PackedCache(model), **options)
    assert torch.equal(packed, expected)


def test_what_cannot_be_given_quantized_heads_is_refused(
    written: QuantizedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for interface in (AttentionInterface, AttentionMaskInterface):
        monkeypatch.setitem(interface._global_mapping, "other", interface()["sdpa"])
    words = "attn_implementation is 'other'; a quantized model runs with sdpa or eager"
    with pytest.raises(ValueError, match=words):
        written.load(attn_implementation="other")
    model = written.load()
    model.set_attn_implementation("other")
    with pytest.raises(ValueError, match=words):
        logits(model, IDS)
    model.set_attn_implementation("sdpa")
    assert torch.equal(logits(model, IDS), logits(written.load(), IDS))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_follows_its_own_model(duplicate: Any, written: QuantizedDirectory) -> None:
    model = reference(written.load())
    again = duplicate(model)
    again.set_attn_implementation("eager")
    names = [
        {m.implementation() for m in each.modules() if isinstance(m, AttentionQuantizer)}
        for each in (model, again)
    ]
    assert names == [{"sdpa"}, {"eager"}]


def test_the_model_keeps_its_configuration(written: QuantizedDirectory) -> None:
    model = written.load()
    for module in model.modules():
        if isinstance(module, LlamaAttention):
            assert module.config is not model.config
            assert isinstance(module.config, LlamaConfig)
    assert model.config._attn_implementation == "sdpa"
