"""The packed KV cache beside the ordinary one: the same numbers to the last bit, in fewer bytes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from duquant import PackedCache
from duquant.config import Recipe
from duquant.nn.attention_quantizer import AttentionQuantizer
from tests.block_by_block import small_recipe
from tests.quantized_directory import QuantizedDirectory, logits, write_quantized
from tests.tiny_models import FAMILIES, tiny_model, token_ids

IDS = token_ids(3, 16)
PADDED = IDS.clone()
PADDED[0, :5], PADDED[2, :1] = 0, 0
MASK = (PADDED != 0).long()
"""Left padding: the second prompt is the longest."""
Written = Callable[..., QuantizedDirectory]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    def write(family: str, **bits: int) -> QuantizedDirectory:
        recipe = replace(small_recipe(), **bits)  # type: ignore[arg-type]
        return write_quantized(tmp_path_factory.mktemp(family), FAMILIES[family], recipe)

    return write


@pytest.fixture(scope="module")
def model(written: Written) -> Any:
    return written("llama-grouped").load()


def caches(model: Any) -> tuple[Cache, Cache]:
    return PackedCache(model), DynamicCache()


def steps(model: Any, cache: Cache, ids: Tensor, prefill: int = 10) -> Tensor:
    """Logits of a prefill and of one token at a time behind it."""
    past = cache.get_seq_length()
    chunks = [ids[:, :prefill], *ids[:, prefill:].split(1, dim=1)]
    outputs = [logits(model, chunk, past_key_values=cache) for chunk in chunks if chunk.numel()]
    assert cache.get_seq_length() == past + ids.shape[1]
    return torch.cat(outputs, dim=1)


def generated(model: Any, cache: Cache, **options: Any) -> Tensor:
    settings = {"max_new_tokens": 8, "do_sample": False, "past_key_values": cache, **options}
    tokens: Tensor = model.generate(**settings)
    return tokens


# The same numbers


@pytest.mark.parametrize(
    "family", ["llama-multi-query", "llama-head-80", "mistral-sliding", "qwen3", "gemma", "smollm3"]
)
def test_every_step_has_the_same_logits(family: str, written: Written) -> None:
    model = written(family).load()
    packed, plain = (steps(model, cache, IDS) for cache in caches(model))
    assert torch.equal(packed, plain)


@pytest.mark.parametrize(("key_bits", "value_bits"), [(2, 8), (3, 5), (8, 4), (7, 6)])
def test_every_width_has_the_same_logits(key_bits: int, value_bits: int, written: Written) -> None:
    model = written("llama-grouped", key_bits=key_bits, value_bits=value_bits).load()
    packed, plain = (steps(model, cache, IDS) for cache in caches(model))
    assert torch.equal(packed, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_the_same_logits(dtype: torch.dtype, written: Written) -> None:
    model = written("llama-grouped").load(dtype=dtype)
    packed, plain = (steps(model, cache, IDS) for cache in caches(model))
    assert packed.dtype == dtype
    assert torch.equal(packed, plain)


def test_the_cache_matters(model: Any) -> None:
    """Otherwise the tests here would prove nothing: other tokens behind other histories."""
    packed, plain = caches(model)
    steps(model, packed, IDS)
    steps(model, plain, IDS.flip(0))
    assert not torch.equal(steps(model, packed, IDS), steps(model, plain, IDS))


def test_windows_hide_what_an_ordinary_cache_drops(written: Written) -> None:
    """Twenty-four tokens under a window of eight: transformers' own cache keeps eight."""
    model = written("mistral-sliding").load()
    ids = token_ids(2, 16)
    expected = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(generated(model, PackedCache(model), input_ids=ids), expected)


def test_left_padding(model: Any) -> None:
    packed, plain = (
        generated(model, cache, input_ids=PADDED, attention_mask=MASK) for cache in caches(model)
    )
    assert torch.equal(packed, plain)
    alone = generated(model, PackedCache(model), input_ids=IDS[:1, 5:])
    assert torch.equal(packed[:1, 16:], alone[:, 11:])


def test_beams_are_reordered(model: Any) -> None:
    options = {"num_beams": 3, "input_ids": PADDED, "attention_mask": MASK}
    packed, plain = (generated(model, cache, **options) for cache in caches(model))
    assert torch.equal(packed, plain)
    assert not torch.equal(
        packed, generated(model, PackedCache(model), **{**options, "num_beams": 1})
    )


def test_a_seed_samples_the_same_tokens(model: Any) -> None:
    samples = []
    for cache in caches(model):
        torch.manual_seed(0)
        samples.append(generated(model, cache, input_ids=IDS, do_sample=True))
    assert torch.equal(*samples)


CHANGES: dict[str, Callable[[Cache], None]] = {
    "crop": lambda cache: cache.crop(-3),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([2, 0])),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([1, 1, 0])),
    "crop all": lambda cache: cache.crop(-16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_cache_goes_on_as_the_ordinary_one(change: str, model: Any) -> None:
    outputs, lengths = [], []
    for cache in caches(model):
        steps(model, cache, IDS)
        CHANGES[change](cache)
        lengths.append(cache.get_seq_length())
        batch = {"repeat": 6, "select": 2}.get(change, 3)
        outputs.append(steps(model, cache, token_ids(batch, 4, seed=5), prefill=2))
    assert lengths[0] == lengths[1]
    assert torch.equal(*outputs)


# Fewer bytes


def attention_of_128_channels(bits: int = 4) -> nn.Module:
    formats = Recipe(activation_bits=bits).formats
    return nn.Sequential(AttentionQuantizer(128, formats, clip_ratio=0.9, block_size=128))


def test_it_takes_about_a_quarter_of_bfloat16() -> None:
    """64 bytes of integers, 6 of scale and zero point, where bfloat16 has 256."""
    packed, plain = PackedCache(attention_of_128_channels()), DynamicCache()
    assert packed.num_bytes() == 0
    key, value = torch.randn(2, 2, 3, 11, 128).bfloat16().unbind()
    for cache in (packed, plain):
        cache.update(key, value, 0)
        cache.update(key[:, :, :1], value[:, :, :1], 0)
    assert packed.num_bytes() == 2 * (2 * 3 * 12) * 70
    bf16 = plain.layers[0].keys.nbytes + plain.layers[0].values.nbytes
    assert packed.num_bytes() / bf16 == 70 / 256


def test_a_generation_leaves_the_bytes_of_its_tokens(model: Any) -> None:
    cache = PackedCache(model)
    tokens = generated(model, cache, input_ids=IDS[:1], min_new_tokens=8)
    kept = tokens.shape[1] - 1  # nobody asked for what follows the last one
    heads, bytes_per_head = 2, 16 // 2 + 6
    assert cache.get_seq_length() == kept
    assert cache.num_bytes() == 2 * 2 * heads * kept * bytes_per_head


# Refusals


def test_a_model_that_is_not_quantized_is_refused() -> None:
    with pytest.raises(ValueError, match="PackedCache needs a model quantized by duquant"):
        PackedCache(tiny_model(FAMILIES["llama"]))


def test_keys_that_are_not_quantized_are_refused() -> None:
    with pytest.raises(ValueError, match=r"K or V is not quantized.*DynamicCache"):
        PackedCache(attention_of_128_channels(16))


def test_a_gradient_is_refused_not_cut(model: Any) -> None:
    with pytest.raises(ValueError, match=r"passes no gradient on: train with use_cache=False"):
        model(IDS, past_key_values=PackedCache(model))
    loss = model(IDS, labels=IDS, past_key_values=DynamicCache()).loss
    loss.backward()
    embeddings = model.get_input_embeddings().weight
    assert embeddings.grad.abs().sum() > 0
    embeddings.grad = None
