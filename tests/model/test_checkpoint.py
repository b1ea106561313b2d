"""Reading model directories: whole, in shards, and damaged in every way that happens."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors.torch import load_file, save_file
from torch import Tensor

from duquant.json_files import read_json
from duquant.model import checkpoint
from duquant.model.checkpoint import INDEX, WEIGHTS, Checkpoint, find_model_directory
from duquant.model.decoder import Decoder
from tests.block_by_block import run_blocks
from tests.tiny_models import FAMILIES, tiny_model, token_ids, write_tiny_model

LLAMA = FAMILIES["llama-grouped"]


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "single", LLAMA)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    directory = write_tiny_model(tmp_path / "sharded", LLAMA, max_shard_size="60KB")
    assert len(list(directory.glob("*.safetensors"))) > 3
    return directory


def edit_weights(directory: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    edit(tensors)
    save_file(tensors, directory / WEIGHTS)


def test_shards_hold_the_same_model(single: Path, sharded: Path) -> None:
    expected = tiny_model(LLAMA).state_dict()
    for directory in (single, sharded):
        read = Checkpoint(directory).read("", torch.float32)
        assert read.keys() == expected.keys()
        assert all(torch.equal(read[name], expected[name]) for name in read)
    input_ids = token_ids()
    logits = [
        run_blocks(Decoder(str(directory), torch.float32), input_ids)
        for directory in (single, sharded)
    ]
    assert torch.equal(*logits)


def test_a_prefix_selects_and_is_cut_off(sharded: Path) -> None:
    read = Checkpoint(sharded).read("model.layers.1.mlp.", torch.bfloat16)
    assert set(read) == {f"{name}_proj.weight" for name in ("gate", "up", "down")}
    assert all(tensor.dtype == torch.bfloat16 for tensor in read.values())
    assert Checkpoint(sharded).read("model.layers.7.", torch.float32) == {}


def test_layer_1_is_not_layer_10(tmp_path: Path) -> None:
    names = [f"model.layers.{index}.weight" for index in (1, 10, 11)]
    save_file({name: torch.ones(1) for name in names}, tmp_path / WEIGHTS)
    assert set(Checkpoint(tmp_path).read("model.layers.1.", torch.float32)) == {"weight"}


def test_shape_comes_from_the_header(sharded: Path) -> None:
    assert Checkpoint(sharded).shape("model.layers.0.mlp.down_proj.weight") == (64, 96)


def test_reading_a_block_opens_only_its_tensors(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(str(sharded), torch.float32)
    touched: list[str] = []
    read = checkpoint._read

    def recording_read(file: Path, names: list[str]) -> object:
        touched.extend(names)
        return read(file, names)

    monkeypatch.setattr(checkpoint, "_read", recording_read)
    decoder.load_block(1)
    assert touched
    assert all(name.startswith("model.layers.1.") for name in touched)
    touched.clear()
    outside = decoder.outside_shapes()
    assert touched == []
    assert outside["model.norm.weight"] == tuple(decoder.outside_tensor("model.norm.weight").shape)
    assert touched == ["model.norm.weight"]
    assert set(outside) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


# Damage: every error is a ValueError that names the file or the tensor.


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_file_is_named(single: Path, kept: float) -> None:
    file = single / WEIGHTS
    size = file.stat().st_size
    os.truncate(file, int(kept if kept >= 1 else kept * size))
    with pytest.raises(ValueError, match=WEIGHTS):
        Decoder(str(single), torch.float32)


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(ValueError, match=shard.name):
        Decoder(str(sharded), torch.float32)


def test_garbage_is_named(single: Path) -> None:
    (single / WEIGHTS).write_bytes(bytes(range(256)) * 10)
    with pytest.raises(ValueError, match=f"{WEIGHTS} is damaged"):
        Decoder(str(single), torch.float32)


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_a_pickle_alone_is_refused_and_never_opened(single: Path, pickle: str) -> None:
    (single / WEIGHTS).unlink()
    (single / pickle).write_bytes(b"not even a pickle")
    with pytest.raises(ValueError, match=f"{pickle}: convert it to safetensors"):
        Decoder(str(single), torch.float32)


def test_no_weights_at_all(single: Path) -> None:
    (single / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=f"holds no {WEIGHTS} and no {INDEX}$"):
        Decoder(str(single), torch.float32)


def test_a_shard_that_the_index_promises_is_missing(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard.name}.* is missing"):
        Decoder(str(sharded), torch.float32)


def test_a_tensor_that_the_index_promises_is_missing(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    file = index["weight_map"]["model.norm.weight"]
    index["weight_map"]["model.extra.weight"] = file
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"{file} lacks model\.extra\.weight"):
        Decoder(str(sharded), torch.float32)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}']
)
def test_a_damaged_index_is_named(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    with pytest.raises(ValueError, match=INDEX):
        Decoder(str(sharded), torch.float32)


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.k_proj.weight", "lm_head.weight", "model.norm.weight"]
)
def test_a_missing_tensor_is_named(single: Path, name: str) -> None:
    edit_weights(single, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"lack {name}"):
        Decoder(str(single), torch.float32)


def test_a_tensor_of_another_shape_is_named(single: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(single, lambda tensors: tensors.update({name: torch.zeros(96, 63)}))
    with pytest.raises(ValueError, match=rf"{name} has shape \(96, 63\).* \(96, 64\)"):
        Decoder(str(single), torch.float32)


def test_a_tensor_that_no_module_takes_is_named(single: Path) -> None:
    """A bias in the file but not in the configuration: dropping it would change the model."""
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_weights(single, lambda tensors: tensors.update({name: torch.zeros(64)}))
    with pytest.raises(ValueError, match=r"block 0.*q_proj\.bias"):
        Decoder(str(single), torch.float32).load_block(0)


def test_frequencies_stored_by_older_checkpoints_are_recomputed(single: Path) -> None:
    """Llama-2 on the hub stores ``rotary_emb.inv_freq`` in every block."""
    expected = run_blocks(Decoder(str(single), torch.float32), token_ids())
    name = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    stored = {name.format(index): torch.zeros(8) for index in range(2)}
    edit_weights(single, lambda tensors: tensors.update(stored))
    assert torch.equal(run_blocks(Decoder(str(single), torch.float32), token_ids()), expected)


# Directories


def test_a_directory_without_config(single: Path) -> None:
    (single / "config.json").unlink()
    with pytest.raises(ValueError, match=rf"{single.name} .*config\.json"):
        Decoder(str(single), torch.float32)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "no-such-model"}'])
def test_a_damaged_config_is_named(single: Path, text: str) -> None:
    (single / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        Decoder(str(single), torch.float32)


def test_a_file_is_no_directory(single: Path) -> None:
    with pytest.raises(ValueError, match=f"{WEIGHTS} is a file; give the directory"):
        find_model_directory(str(single / WEIGHTS))


@pytest.mark.parametrize("name", ["/no/such/model", "./missing", "~/missing", "a/b/c", "plain"])
def test_a_path_that_leads_nowhere_asks_no_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(checkpoint, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=f"there is no model directory {name}"):
        find_model_directory(name)


def test_a_hub_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(checkpoint, "hub_answers", lambda: True)
    monkeypatch.setattr(checkpoint, "snapshot_download", fail)
    with pytest.raises(ValueError, match=r"owner/name.*OfflineModeIsEnabled.*check the name"):
        find_model_directory("owner/name")


def test_a_hub_name_is_fetched_without_pickles(
    single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def download(name: str, allow_patterns: list[str], local_files_only: bool) -> str:
        assert not local_files_only
        asked[name] = allow_patterns
        return str(single)

    monkeypatch.setattr(checkpoint, "hub_answers", lambda: True)
    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    assert find_model_directory("owner/name") == single
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in asked["owner/name"])


def test_a_silent_hub_is_asked_for_nothing(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it gave before is used; what it did not is refused without another question."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(checkpoint, "hub_answers", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"owner/name, and the hub does not answer: check .* netw"):
        find_model_directory("owner/name")
    cached = tmp_path / "cache" / "models--owner--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(single, cached / "snapshots" / ("0" * 40))
    assert Decoder("owner/name", torch.float32).num_blocks == 2


def test_read_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.json is missing"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bytes\.json is damaged"):
        read_json(tmp_path / "bytes.json")
