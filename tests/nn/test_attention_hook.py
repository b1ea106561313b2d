"""Caches of every kind: a token is quantized once, and models with biases run as any other."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

from duquant import PackedCache
from duquant.nn.attention import BIASES
from duquant.nn.attention_hook import MARK
from tests.planted_biases import BIASED, SCALED, write_biased
from tests.quantized_directory import logits, write_quantized
from tests.tiny_models import FAMILIES, token_ids

IDS = token_ids(3, 16)
PADDED = IDS.clone()
PADDED[0, :5], PADDED[2, :1] = 0, 0
MASK = (PADDED != 0).long()
MODELS = {
    "qwen2": BIASED["qwen2"],
    "sliding": BIASED["qwen2-mixed-layers"],
    "interleaved": BIASED["ernie4_5"],
    "not rotated": BIASED["smollm3"],
    **{name: {**BIASED["qwen2"], "rope_parameters": SCALED[name]} for name in ("dynamic", "yarn")},
}
Load = Callable[..., Any]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    written: dict[str, Any] = {}

    def find(name: str = "qwen2", **options: Any) -> Any:
        if name not in written:
            written[name] = write_biased(tmp_path_factory.mktemp("model"), MODELS[name])
        return written[name].load(**options)

    return find


@pytest.fixture(scope="module")
def model(load: Load) -> Any:
    return load()


def caches(model: Any) -> tuple[Cache, Cache, Cache]:
    return PackedCache(model), DynamicCache(), StaticCache(config=model.config, max_cache_len=40)


def steps(model: Any, cache: Cache, ids: Tensor, prefill: int = 10) -> Tensor:
    """Logits of a prefill and of one token at a time behind it."""
    chunks = [ids[:, :prefill], *ids[:, prefill:].split(1, dim=1)]
    outputs = [logits(model, chunk, past_key_values=cache) for chunk in chunks if chunk.numel()]
    return torch.cat(outputs, dim=1)


def generated(model: Any, cache: Cache | None, **options: Any) -> Tensor:
    settings = {"max_new_tokens": 8, "do_sample": False, "past_key_values": cache, **options}
    tokens: Tensor = model.generate(**settings)
    return tokens


@pytest.mark.parametrize("name", [name for name in MODELS if name != "dynamic"])
def test_every_cache_gives_the_logits_of_no_cache(name: str, load: Load) -> None:
    model = load(name)
    expected = logits(model, IDS, use_cache=False)
    outputs = [steps(model, cache, IDS) for cache in caches(model)]
    # Bit by bit: what is cached is what was attended with, and is never quantized again.
    assert torch.equal(outputs[0], outputs[1])
    for output in outputs:
        # Sums in another order move an activation to the next level now and then.
        assert (output - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_the_same_logits(dtype: torch.dtype, load: Load) -> None:
    model = load(dtype=dtype)
    packed, plain, _ = (steps(model, cache, IDS) for cache in caches(model))
    assert packed.dtype == dtype
    assert torch.equal(packed, plain)


def test_a_cached_key_keeps_the_frequencies_it_was_rotated_by(load: Load) -> None:
    """Dynamic RoPE changes them beyond 64 positions, for new tokens alone."""
    model, ids = load("dynamic"), token_ids(2, 72)
    packed, plain = (steps(model, cache, ids, 60) for cache in caches(model)[:2])
    assert torch.equal(packed, plain)
    before, after = PackedCache(model), PackedCache(model)
    steps(model, before, ids[:, :60], 60)
    steps(model, after, ids, 60)
    for old, new in zip(before.layers, after.layers, strict=True):
        assert torch.equal(old.keys, new.keys[:, :, :60])


def test_left_padding(model: Any) -> None:
    outputs = [
        generated(model, cache, input_ids=PADDED, attention_mask=MASK) for cache in caches(model)
    ]
    assert all(torch.equal(outputs[0], output) for output in outputs[1:])
    alone = generated(model, PackedCache(model), input_ids=IDS[:1, 5:])
    assert torch.equal(outputs[0][:1, 16:], alone[:, 11:])


def test_beams_are_reordered(model: Any) -> None:
    options = {"num_beams": 3, "input_ids": PADDED, "attention_mask": MASK}
    packed, plain = (generated(model, cache, **options) for cache in caches(model)[:2])
    assert torch.equal(packed, plain)


@pytest.mark.parametrize("name", ["sliding", "not rotated", "yarn"])
def test_generation_is_the_same_with_every_cache(name: str, load: Load) -> None:
    """Twenty-four tokens under a window of eight, and layers without rotation."""
    model = load(name)
    expected = generated(model, None, input_ids=IDS)
    for cache in caches(model):
        assert torch.equal(generated(model, cache, input_ids=IDS), expected)


def test_positions_may_be_the_callers(model: Any) -> None:
    """Each sequence its own, with gaps; the next token goes on behind them."""
    positions = torch.stack([torch.arange(16), 2 * torch.arange(16), 20 + torch.arange(16)])
    everyone = torch.ones_like(IDS)  # without a mask, gaps would mean several sequences in one
    outputs = []
    for cache in caches(model)[:2]:
        parts = [
            logits(
                model,
                IDS[:, chunk],
                position_ids=positions[:, chunk],
                attention_mask=everyone[:, : chunk.stop],
                past_key_values=cache,
            )
            for chunk in (slice(0, 12), slice(12, 16))
        ]
        outputs.append(torch.cat(parts, dim=1))
    assert torch.equal(*outputs)
    options = {"attention_mask": everyone, "use_cache": False}
    whole = logits(model, IDS, position_ids=positions, **options)
    assert (outputs[0] - whole).norm() < 0.02 * whole.norm()
    assert (logits(model, IDS, **options) - whole).norm() > 0.1 * whole.norm()


CHANGES: dict[str, Callable[[Cache], object]] = {
    "crop": lambda cache: cache.crop(-3),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([2, 0])),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([1, 1, 0])),
    "crop all": lambda cache: cache.crop(-16),
    "reset": lambda cache: cache.reset(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_cache_goes_on_as_the_ordinary_one(change: str, model: Any) -> None:
    outputs = []
    for cache in caches(model)[:2]:
        logits(model, PADDED, attention_mask=MASK, past_key_values=cache)
        CHANGES[change](cache)
        batch = {"repeat": 6, "select": 2}.get(change, 3)
        outputs.append(steps(model, cache, token_ids(batch, 4, seed=5), prefill=2))
    assert torch.equal(*outputs)


def test_a_copied_cache_goes_on_alone(model: Any) -> None:
    prompt = PackedCache(model)
    steps(model, prompt, IDS)
    more = [token_ids(3, 4, seed=seed) for seed in (5, 6)]
    outputs = [steps(model, copy.deepcopy(prompt), ids, 2) for ids in more]
    assert torch.equal(outputs[1], steps(model, prompt, more[1], 2))


def test_rotations_are_kept_once_for_all_layers(model: Any) -> None:
    cache = PackedCache(model)
    steps(model, cache, IDS[:1])
    heads, channels, layers, tokens = 2, 16, 2, 16
    encoded = channels // 2 + 6
    per_token = layers * heads * (encoded + 4 + encoded) + 2 * channels * 4
    assert cache.num_bytes() == tokens * per_token


def test_eager_attention_computes_the_same(load: Load) -> None:
    model = load(attn_implementation="eager")
    expected = logits(load(), IDS)
    # Scores are rounded otherwise, which now and then moves an activation to the next level.
    assert (logits(model, IDS) - expected).norm() < 0.02 * expected.norm()


def test_copies_and_pickles_compute_the_same(model: Any) -> None:
    expected = logits(model, IDS)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for again in [*copies, torch.load(file, weights_only=False)]:
        assert torch.equal(logits(again, IDS), expected)


@pytest.mark.parametrize("offload_buffers", [False, True])
def test_an_offloaded_block_finds_its_biases(
    offload_buffers: bool, load: Load, tmp_path: Path
) -> None:
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    blocks = {"model.layers.0": "cpu", "model.layers.1": "disk", "lm_head": "cpu"}
    model = load(
        device_map={**places, **blocks}, offload_folder=tmp_path, offload_buffers=offload_buffers
    )
    expected = load()
    assert torch.equal(logits(model, IDS), logits(expected, IDS))
    for one, other in zip(caches(model), caches(expected), strict=True):
        assert torch.equal(steps(model, one, IDS), steps(expected, other, IDS))


def filled(model: Any, *, quantized: bool) -> DynamicCache:
    """Eight tokens that no forward pass has put in, as prefix tuning does."""
    cache, generator = DynamicCache(), torch.Generator().manual_seed(1)
    for index, layer in enumerate(model.model.layers):
        quantizer = layer.self_attn.attention_quantizer
        shape = (len(IDS), model.config.num_key_value_heads, 8, quantizer.head_dim)
        key, value = (torch.randn(shape, generator=generator) for _ in range(2))
        if quantized:
            key, value = quantizer.quantized_key(key), quantizer.quantized_value(value)
        cache.update(key, value, index)
    if quantized:
        setattr(cache, MARK, True)
    return cache


def test_what_somebody_else_put_into_a_cache_is_quantized_in_attention(tmp_path: Path) -> None:
    model = write_quantized(tmp_path, FAMILIES["llama-grouped"]).load()
    mask = torch.ones(len(IDS), 8 + IDS.shape[1], dtype=torch.long)
    expected, found = (
        logits(model, IDS, past_key_values=filled(model, quantized=each), attention_mask=mask)
        for each in (True, False)
    )
    torch.testing.assert_close(found, expected)
    assert (found - logits(model, IDS)).norm() > 0.1 * expected.norm()


def test_biases_cannot_be_added_to_what_somebody_else_put_in(model: Any) -> None:
    with pytest.raises(ValueError, match="tokens that this model has not seen"):
        model(IDS, past_key_values=filled(model, quantized=False))


def test_a_hook_that_is_not_heard_is_an_error(tmp_path: Path, monkeypatch: Any) -> None:
    model = write_quantized(tmp_path, FAMILIES["llama-grouped"]).load()
    attention = type(model.model.layers[0].self_attn)
    forward = attention.forward

    def deaf(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop(BIASES)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(attention, "forward", deaf)
    with pytest.raises(ValueError, match="LlamaAttention passes no keyword arguments on"):
        model(IDS)


def noting_rows(quantize: Callable[..., Tensor], rows: list[int]) -> Callable[..., Tensor]:
    def noting(heads: Tensor, *bias: Tensor | None) -> Tensor:
        rows.append(heads.shape[2])
        return quantize(heads, *bias)

    return noting


@pytest.mark.parametrize("family", ["llama-grouped", "qwen2", "mistral-sliding", "smollm3"])
def test_a_cached_token_is_quantized_once(family: str, tmp_path: Path) -> None:
    model = write_quantized(tmp_path, FAMILIES[family]).load()
    rows: list[int] = []
    for layer in model.model.layers:
        quantizer = layer.self_attn.attention_quantizer
        for name in ("quantized_key", "quantized_value"):
            setattr(quantizer, name, noting_rows(getattr(quantizer, name), rows))
    for cache in caches(model)[1:]:
        outputs = steps(model, cache, IDS)
        assert rows
        assert max(rows[-4 * len(model.model.layers) :]) == 1, "tokens of the last two steps"
        rows.clear()
        # As without a cache, where the rotation of many rows may round otherwise.
        expected = logits(model, IDS, use_cache=False)
        assert (outputs - expected).norm() < 0.02 * expected.norm()
        rows.clear()
