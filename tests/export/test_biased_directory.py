"""Model directories of models with biases: which format they have, and the one before it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import duquant
from duquant.config import Recipe
from duquant.export.hugging_face import FORMAT_VERSION, OLDEST_VERSION
from duquant.export.packed_block import BIASES, pack_block, unpack_block
from duquant.model import surgery
from duquant.model.decoder import Decoder
from tests.block_by_block import quantize_decoder, small_recipe
from tests.planted_biases import BIASED, write_biased
from tests.quantized_directory import QuantizedDirectory, logits, write_quantized
from tests.tiny_models import FAMILIES, token_ids

IDS = token_ids()
MOVED = {f"{BIASES}{operand}" for operand in ("query", "key", "value")}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> QuantizedDirectory:
    return write_biased(tmp_path_factory.mktemp("qwen2"), BIASED["qwen2"])


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> QuantizedDirectory:
    """What the release before wrote: biases in the projections, quantized with Q, K and V."""
    with monkeypatch.context() as patch:
        patch.setattr(surgery, "separable_biases", lambda *_: [])
        return write_biased(tmp_path, BIASED["qwen2"])


def stored(path: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def version(path: Path) -> int:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return int(config["quantization_config"]["format_version"])


def test_what_is_loaded_computes_what_was_calibrated(directory: QuantizedDirectory) -> None:
    model = directory.load()
    duquant.set_execution(model, "reference")
    assert torch.equal(logits(model, IDS), directory.logits_block_by_block(IDS))


def test_the_integer_backend_stays_as_close_as_without_biases(
    directory: QuantizedDirectory, tmp_path: Path
) -> None:
    errors = []
    for each in (directory, write_quantized(tmp_path, FAMILIES["llama-grouped"])):
        reference, integer = each.load(), each.load()
        duquant.set_execution(reference, "reference")
        duquant.set_execution(integer, "integer")
        expected = logits(reference, IDS)
        errors.append(float((logits(integer, IDS) - expected).norm() / expected.norm()))
    # Sums in another order move an activation to the next level now and then.
    assert max(errors) < 0.02


def test_a_saved_model_is_the_same_again(directory: QuantizedDirectory, tmp_path: Path) -> None:
    model = directory.load()
    model.save_pretrained(tmp_path)
    assert version(tmp_path) == FORMAT_VERSION
    again = replace(directory, path=tmp_path).load()
    assert torch.equal(logits(again, IDS), logits(model, IDS))


def test_only_biases_that_moved_make_a_new_version(
    directory: QuantizedDirectory, tmp_path: Path
) -> None:
    assert version(directory.path) == FORMAT_VERSION
    recipe = replace(small_recipe(), query_bits=16, key_bits=16, value_bits=16)
    kept = write_biased(tmp_path, BIASED["qwen2"], recipe=recipe)
    assert version(kept.path) == OLDEST_VERSION
    names = stored(kept.path).keys()
    assert not any("attention_quantizer" in name for name in names)
    assert "model.layers.0.self_attn.k_proj.bias" in names


def test_a_directory_of_the_version_before_computes_what_it_did(
    before: QuantizedDirectory, directory: QuantizedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert version(before.path) == OLDEST_VERSION
    model, now = before.load(), directory.logits_block_by_block(IDS)
    assert model.model.layers[0].self_attn.k_proj.bias is not None
    assert model.model.layers[0].self_attn.attention_quantizer.biases is None
    duquant.set_execution(model, "reference")
    monkeypatch.setattr(surgery, "separable_biases", lambda *_: [])
    blocks = quantize_decoder(before.decoder, before.recipe, token_ids(seed=1))
    packed = [pack_block(block) for block in blocks]
    tensors = stored(before.path)
    for index, block in enumerate(packed):
        for name, tensor in block.items():
            assert torch.equal(tensors[f"model.layers.{index}.{name}"], tensor)
    assert torch.equal(logits(model, IDS), before.logits_block_by_block(IDS))
    assert not torch.allclose(logits(model, IDS), now, atol=0.1)
    packed_cache = duquant.PackedCache(model)
    cached = logits(model, IDS, past_key_values=packed_cache)
    assert torch.equal(cached, logits(model, IDS, use_cache=True))


def test_blocks_of_both_versions_may_stand_together(
    before: QuantizedDirectory, directory: QuantizedDirectory
) -> None:
    """A run of the version before that is finished by this one."""
    decoder: Decoder = directory.decoder
    for source in (before, directory):
        tensors = {
            name.removeprefix("model.layers.0."): tensor
            for name, tensor in stored(source.path).items()
            if name.startswith("model.layers.0.")
        }
        block = unpack_block(decoder.load_block(0), tensors, source.recipe, torch.float32)
        assert (block.self_attn.attention_quantizer.biases is None) is (source is before)


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    held = load_file(path)
    change(held)
    save_file(held, path, metadata=metadata)


@pytest.mark.parametrize("name", sorted(MOVED))
def test_a_bias_that_is_gone_or_altered_is_missed(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = write_biased(tmp_path, {**BIASED["qwen2"], "num_hidden_layers": 1})
    file = written.path / "model-block-00000.safetensors"
    full = f"model.layers.0.{name}"
    edit(file, lambda held: held[full].mul_(1.001))
    with pytest.raises(ValueError, match="damaged or altered"):
        written.load()
    edit(file, lambda held: held.update({full: held[full][:-1].clone()}))
    with pytest.raises(ValueError, match="has shape"):
        written.load()
    edit(file, lambda held: held.pop(full))
    with pytest.raises(ValueError, match=f"lacks {name}"):
        written.load()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_biases_follow_the_models_dtype(dtype: torch.dtype, directory: QuantizedDirectory) -> None:
    model = directory.load(dtype=dtype)
    biases = model.model.layers[0].self_attn.attention_quantizer.biases
    assert {bias.dtype for bias in biases.buffers()} == {dtype}
    assert logits(model, IDS).dtype == dtype


def test_every_recipe_packs_and_unpacks_its_biases(directory: QuantizedDirectory) -> None:
    recipes: list[Recipe] = [
        replace(small_recipe(), **{f"{operand}_bits": 16})  # type: ignore[arg-type]
        for operand in ("query", "key", "value")
    ]
    for recipe in recipes:
        (block, *_) = quantize_decoder(directory.decoder, recipe, token_ids(seed=1))
        tensors = pack_block(block)
        fresh = directory.decoder.load_block(0)
        again = unpack_block(fresh, tensors, recipe, torch.float32)
        state = {name: t for name, t in again.state_dict().items() if "bias" in name}
        assert state.keys() == {name for name in tensors if "bias" in name}
        assert all(torch.equal(state[name], tensors[name]) for name in state)
