"""Layouts of weights that transformers loads: without a prefix, tied heads that were kept."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from duquant.model.checkpoint import INDEX, WEIGHTS, Checkpoint, find_model_directory
from duquant.model.decoder import Decoder
from tests.block_by_block import run_blocks, small_recipe
from tests.quantized_directory import QuantizedDirectory, logits, quantize_source, write_quantized
from tests.tiny_models import FAMILIES, tiny_model, token_ids, write_tiny_model

IDS = token_ids()
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def assert_same_as_transformers(directory: Path, target: Path) -> QuantizedDirectory:
    """Block by block, the decoder is the model; and what is written from it loads and runs."""
    decoder = Decoder(str(directory), torch.float32)
    expected = logits(AutoModelForCausalLM.from_pretrained(directory), IDS)
    torch.testing.assert_close(run_blocks(decoder, IDS), expected)
    written = quantize_source(directory, target, small_recipe())
    loaded = written.load()
    # The loaded model multiplies integers, the blocks floats: sums in another order.
    torch.testing.assert_close(
        logits(loaded, IDS), written.logits_block_by_block(IDS), rtol=0, atol=0.05
    )
    return written


def edit(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llama-tied", "gemma"])
@pytest.mark.parametrize("size", ["1GB", "60KB"])
def test_a_model_saved_without_its_head(family: str, size: str, tmp_path: Path) -> None:
    """As Qwen3-Embedding: no name begins with ``model.``."""
    options = {**FAMILIES[family], "tie_word_embeddings": True}
    write_tiny_model(tmp_path / "whole", options)
    base = AutoModel.from_pretrained(tmp_path / "whole")
    base.save_pretrained(tmp_path / "base", max_shard_size=size)
    files = sorted((tmp_path / "base").glob("*.safetensors"))
    assert not any(name.startswith("model.") for file in files for name in load_file(file))
    assert_same_as_transformers(tmp_path / "base", tmp_path / "quantized")


def test_names_without_a_prefix_beside_a_head(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "source", FAMILIES["llama-grouped"])

    def strip(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit(tmp_path / "source", strip)
    decoder = Decoder(str(tmp_path / "source"), torch.float32)
    whole = tiny_model(FAMILIES["llama-grouped"])
    torch.testing.assert_close(run_blocks(decoder, IDS), logits(whole, IDS))


def test_names_of_both_kinds_for_one_tensor_are_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, FAMILIES["llama-grouped"])
    edit(
        tmp_path,
        lambda tensors: tensors.update(
            {"norm.weight": torch.ones(64), "layers.0.mlp.up_proj.weight": torch.ones(1)}
        ),
    )
    with pytest.raises(ValueError, match=r"with and without 'model\.'"):
        Checkpoint(tmp_path)


def test_a_missing_head_that_is_not_tied_is_still_missed(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "whole", FAMILIES["llama-grouped"])
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"the weights lack lm_head\.weight"):
        Decoder(str(tmp_path / "base"), torch.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kept", ["equal", "other", "alone"])
def test_a_tied_model_whose_file_kept_its_head(kept: str, tmp_path: Path) -> None:
    """Equal it is read once, alone it is the embeddings, another one is a head of its own."""
    write_tiny_model(tmp_path / "source", FAMILIES["llama-tied"])

    def keep(tensors: dict[str, Tensor]) -> None:
        tensors[HEAD] = tensors[EMBEDDINGS].clone()
        if kept == "other":
            tensors[HEAD] = tensors[HEAD].flip(0)
        if kept == "alone":
            del tensors[EMBEDDINGS]

    edit(tmp_path / "source", keep)
    written = assert_same_as_transformers(tmp_path / "source", tmp_path / "quantized")
    outside = load_file(written.path / "model-outside.safetensors")
    assert outside.keys() == {EMBEDDINGS, "model.norm.weight"} | (
        {HEAD} if kept == "other" else set()
    )
    config = json.loads((written.path / "config.json").read_text())
    assert config["tie_word_embeddings"] == (kept != "other")


# A quantized model without its head


@pytest.mark.parametrize("family", ["llama-grouped", "llama-tied", "qwen2"])
def test_a_quantized_model_loads_without_its_head(family: str, tmp_path: Path) -> None:
    written = write_quantized(tmp_path, FAMILIES[family])
    base, found = AutoModel.from_pretrained(written.path, output_loading_info=True)
    assert not any(found.values()), "transformers would print a table of these"
    with torch.no_grad():
        expected = written.load().model(IDS).last_hidden_state
        assert torch.equal(base(IDS).last_hidden_state, expected)
        base.save_pretrained(tmp_path / "again")
        again = AutoModel.from_pretrained(tmp_path / "again")
        assert torch.equal(again(IDS).last_hidden_state, expected)


# Hostile files


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json", "anything"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, FAMILIES["llama"])
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is not a regular file|has no config.json"):
        find_model_directory(str(tmp_path))
    if name == WEIGHTS:
        with pytest.raises(ValueError, match=f"{name} is not a regular file"):
            Checkpoint(tmp_path)


@pytest.mark.parametrize("shard", ["pipe", "../pipe", "/dev/zero", "folder"])
def test_a_shard_that_is_no_file_is_not_read(shard: str, tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model", FAMILIES["llama"])
    os.mkfifo(tmp_path / "pipe")
    (directory / "folder").mkdir()
    (directory / WEIGHTS).unlink()
    if shard == "pipe":
        os.mkfifo(directory / "pipe")
    (directory / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(ValueError, match="is not a regular file"):
        Checkpoint(directory)


@pytest.mark.parametrize(
    "content",
    [
        "[]", "{}", "3", "null", '"text"', "true", '{"weight_map": {}}', '{"weight_map": []}',
        '{"weight_map": null}', '{"weight_map": "a"}', '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": ["b"]}}', '{"weight_map": {"a": {"b": "c"}}}', '{"weight_map": 3}',
        '{"weight_map": {"a": ""}}', '{"weight_map": {"a": "no.safetensors"}}',
        '{"weight_map": {"a": "x\\u0000y"}}',
    ],
)  # fmt: skip
def test_an_index_of_another_shape_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path, FAMILIES["llama"])
    (directory / WEIGHTS).unlink()
    (directory / INDEX).write_text(content)
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        Decoder(str(directory), torch.float32)
    assert str(directory) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["[]", "{}", "3", "null", '"text"', "[[]]"])
def test_a_configuration_of_another_shape_is_refused_in_one_line(
    content: str, tmp_path: Path
) -> None:
    directory = write_tiny_model(tmp_path, FAMILIES["llama"])
    (directory / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json") as refused:
        Decoder(str(directory), torch.float32)
    assert "\n" not in str(refused.value)
