"""The model directory: complete when its index is there, and only then."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from duquant.config import Recipe
from duquant.export import model_directory
from duquant.export.model_directory import ModelDirectory
from duquant.export.quantization_config import FORMAT_VERSION, NOTICE, NOTICE_FIELD
from duquant.model.decoder import Decoder
from tests.block_by_block import quantize_decoder, small_recipe
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun
from tests.tiny_models import FAMILIES, token_ids, write_tiny_model

pytestmark = LIGHTNING_WARNINGS
INDEX = "model.safetensors.index.json"
IDS = token_ids(2, 16)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def written(decoder: Decoder, path: Path, recipe: Recipe) -> ModelDirectory:
    """All blocks, not yet completed."""
    directory = ModelDirectory(path, recipe)
    for index, quantized in enumerate(quantize_decoder(decoder, recipe, IDS)):
        directory.write_block(index, quantized)
    return directory


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    path = write_tiny_model(tmp_path_factory.mktemp("model"), FAMILIES["llama-grouped"])
    return Decoder(str(path), torch.float32)


# A finished run's directory


def test_the_configuration_says_how_it_is_quantized(finished_run: FinishedRun) -> None:
    original = read(finished_run.source / "config.json")
    config = read(finished_run.output / "model" / "config.json")
    quantization = config.pop("quantization_config")
    assert quantization["quant_method"] == "duquant"
    assert quantization["format_version"] == FORMAT_VERSION
    assert Recipe.from_dict(quantization["recipe"]) == finished_run.model.recipe
    assert config.pop(NOTICE_FIELD) == NOTICE
    assert config.pop("dtype") == "float32"
    original.pop("dtype", None)
    assert config == original


def test_every_tensor_of_the_index_is_where_it_says(finished_run: FinishedRun) -> None:
    path = finished_run.output / "model"
    index = read(path / INDEX)
    stored = {name: file.name for file in path.glob("*.safetensors") for name in load_file(file)}
    assert index["weight_map"] == stored
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    assert index["metadata"]["total_size"] == size


def test_tokenizer_and_generation_settings_come_along(finished_run: FinishedRun) -> None:
    path = finished_run.output / "model"
    names = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    for name in names:
        assert (path / name).read_bytes() == (finished_run.source / name).read_bytes()
    assert not list(path.glob(".*")), "no temporary file stays"
    assert not list(path.glob("*.bin"))


def test_what_is_not_a_block_is_as_it_was(finished_run: FinishedRun) -> None:
    original = load_file(finished_run.source / "model.safetensors")
    outside = load_file(finished_run.output / "model" / "model-outside.safetensors")
    expected = {n: t for n, t in original.items() if not n.startswith("model.layers.")}
    assert set(expected) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert outside.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(outside[name], tensor), name


def test_no_weight_of_a_linear_is_left_in_full(finished_run: FinishedRun) -> None:
    tensors = load_file(finished_run.output / "model" / "model-block-00000.safetensors")
    linears = {name: t for name, t in tensors.items() if "_proj." in name and "site" not in name}
    assert {name.rpartition(".")[2] for name in linears} == {"packed", "scale", "zero"}


# How it grows


def test_the_index_is_written_last(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails before it leaves a directory that does not claim to be complete."""
    directory = written(decoder, tmp_path / "model", small_recipe())
    assert not directory.is_complete
    order: list[str] = []
    for name in ("write_durably", "write_json", "write_tensors"):
        original = getattr(model_directory, name)

        def watch(path: Path, *rest: Any, original: Any = original) -> None:
            order.append(path.name)
            assert not directory.is_complete
            original(path, *rest)

        monkeypatch.setattr(model_directory, name, watch)
    directory.complete(decoder)
    assert directory.is_complete
    assert order[-1] == INDEX
    assert {"config.json", "model-outside.safetensors"} < set(order)


def test_a_missing_block_cannot_be_completed(decoder: Decoder, tmp_path: Path) -> None:
    directory = written(decoder, tmp_path / "model", small_recipe())
    directory.block_file(1).unlink()
    with pytest.raises(ValueError, match=r"model-block-00001\.safetensors is missing"):
        directory.complete(decoder)
    assert not directory.is_complete


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "source", FAMILIES["llama-tied"])
    decoder = Decoder(str(source), torch.float32)
    directory = written(decoder, tmp_path / "model", small_recipe())
    directory.complete(decoder)
    outside = load_file(tmp_path / "model" / "model-outside.safetensors")
    assert set(outside) == {"model.embed_tokens.weight", "model.norm.weight"}


def test_half_precision_is_stored_as_such(decoder: Decoder, tmp_path: Path) -> None:
    half = Decoder(str(decoder.directory), torch.bfloat16)
    directory = written(half, tmp_path / "model", small_recipe())
    directory.complete(half)
    assert read(tmp_path / "model" / "config.json")["dtype"] == "bfloat16"
    outside = load_file(tmp_path / "model" / "model-outside.safetensors")
    assert {tensor.dtype for tensor in outside.values()} == {torch.bfloat16}
    block = load_file(directory.block_file(0))
    assert block["model.layers.0.input_layernorm.norm.weight"].dtype == torch.bfloat16


def test_shards_of_the_original_do_not_matter(decoder: Decoder, tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "source", FAMILIES["llama-grouped"], max_shard_size="50KB")
    sharded = Decoder(str(source), torch.float32)
    assert len(set(sharded.checkpoint.files.values())) > 1
    for name, original in (("whole", decoder), ("sharded", sharded)):
        directory = written(original, tmp_path / name, small_recipe())
        directory.complete(original)
    for file in (tmp_path / "whole").glob("*.safetensors"):
        ours, theirs = load_file(file), load_file(tmp_path / "sharded" / file.name)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# Reading


def test_the_tensors_of_another_block_are_refused(decoder: Decoder, tmp_path: Path) -> None:
    directory = written(decoder, tmp_path / "model", small_recipe())
    directory.block_file(1).rename(directory.block_file(0))
    with pytest.raises(ValueError, match=r"holds model\.layers\.1\.\S+, which is not of"):
        directory.read_block(0, decoder)


@pytest.mark.parametrize("other", [small_recipe(8), small_recipe(16)], ids=["W8", "W16"])
def test_blocks_of_another_recipe_are_refused_by_file(
    decoder: Decoder, tmp_path: Path, other: Recipe
) -> None:
    written(decoder, tmp_path / "model", small_recipe())
    with pytest.raises(ValueError, match=r"model-block-00000\.safetensors: "):
        ModelDirectory(tmp_path / "model", other).read_block(0, decoder)


@pytest.mark.parametrize("reader", ["read_block", "require_block"])
@pytest.mark.parametrize("left", [0, 7, 2000, -1])
def test_a_truncated_block_is_named(
    decoder: Decoder, tmp_path: Path, left: int, reader: str
) -> None:
    directory = written(decoder, tmp_path / "model", small_recipe())
    file = directory.block_file(0)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"model-block-00000\.safetensors is damaged"):
        getattr(directory, reader)(0, decoder)


def test_a_block_is_checked_by_the_header_of_its_file(decoder: Decoder, tmp_path: Path) -> None:
    """Every name and shape, and not one weight."""
    recipe = small_recipe()
    directory = written(decoder, tmp_path / "model", recipe)
    for index in range(decoder.num_blocks):
        directory.require_block(index, decoder)
    tensors = load_file(directory.block_file(0))
    name = "model.layers.0.mlp.up_proj.packed"
    packed = tensors.pop(name)
    save_file(tensors, directory.block_file(0))
    with pytest.raises(ValueError, match=r"00000\.safetensors: .* lacks mlp\.up_proj\.packed"):
        directory.require_block(0, decoder)
    save_file({**tensors, name: packed[:, 1:].contiguous()}, directory.block_file(0))
    with pytest.raises(ValueError, match=r"00000\.safetensors: mlp\.up_proj\.packed has shape"):
        directory.require_block(0, decoder)
    directory.block_file(0).unlink()
    with pytest.raises(ValueError, match=r"00000\.safetensors is missing"):
        directory.require_block(0, decoder)


def test_reading_needs_no_original_weights_and_trains_nothing(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = written(decoder, tmp_path / "model", small_recipe())
    fresh = Decoder(str(decoder.directory), torch.float32)
    monkeypatch.setattr(fresh.checkpoint, "read", None)
    block = directory.read_block(0, fresh)
    assert not any(parameter.requires_grad for parameter in block.parameters())
    assert not any(tensor.is_meta for tensor in (*block.parameters(), *block.buffers()))
    assert all(parameter.is_meta for parameter in fresh.meta_block(0).parameters())
