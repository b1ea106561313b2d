"""Checksums cover every tensor and the recipe, and whatever is saved again carries its own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import duquant
from duquant.export.checksums import (
    OUTSIDE,
    RECIPE,
    file_checksums,
    part_checksums,
    part_of,
    recipe_checksum,
)
from duquant.export.first_tokens import PART as FIRST_TOKENS
from tests.block_by_block import small_recipe
from tests.quantized_directory import QuantizedDirectory, logits, write_quantized
from tests.tiny_models import FAMILIES, token_ids

IDS = token_ids()
OFFLOADED = {
    "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
    "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk",
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> QuantizedDirectory:
    return write_quantized(tmp_path_factory.mktemp("llama"), FAMILIES["llama-biases"])


def stored_checksums(path: Path) -> dict[str, str]:
    """Those of the model; its answers in ``logits.json`` are not saved again by transformers."""
    config = json.loads((path / "config.json").read_text())
    checksums: dict[str, str] = config["quantization_config"]["checksums"]
    return {part: checksum for part, checksum in checksums.items() if part != FIRST_TOKENS}


def places(file: Path) -> Iterator[tuple[str, int]]:
    """Every tensor's name and the place of its last byte."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header: dict[str, Any] = json.loads(opened.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, 8 + length + entry["data_offsets"][1] - 1


def flip(file: Path, place: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(place)
        (byte,) = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte ^ 1]))


def test_one_bit_of_any_tensor_is_found_and_its_part_named(written: QuantizedDirectory) -> None:
    seen = set()
    for file in sorted(written.path.glob("*.safetensors")):
        for name, place in places(file):
            part = part_of(name)
            flip(file, place)
            with pytest.raises(ValueError, match=f"^{part} of the quantized model: damaged"):
                written.load(dtype=torch.bfloat16)
            flip(file, place)
            seen.add(part)
    assert seen == {"block 0", "block 1", OUTSIDE}
    written.load(dtype=torch.bfloat16)


def test_a_run_finds_one_bit_of_its_norms_too(written: QuantizedDirectory) -> None:
    file = written.path / "model-block-00001.safetensors"
    place = dict(places(file))["model.layers.1.input_layernorm.norm.weight"]
    flip(file, place)
    try:
        with pytest.raises(ValueError, match=r"00001\.safetensors is damaged: its tensors are not"):
            written.logits_block_by_block(IDS)
    finally:
        flip(file, place)


def test_offloaded_tensors_are_checked_where_they_lie(
    written: QuantizedDirectory, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    file = written.path / "model-outside.safetensors"
    place = dict(places(file))["lm_head.weight"]
    device_map = {"model": "cpu", "lm_head": "disk"}
    flip(file, place)
    try:
        with pytest.raises(ValueError, match=f"^{OUTSIDE} of the quantized model: damaged"):
            written.load(device_map=device_map, offload_folder=tmp_path)
    finally:
        flip(file, place)
    assert written.load(device_map=device_map, offload_folder=tmp_path).lm_head.weight.is_meta


# Saved again


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_is_saved_again_has_the_same_checksums(
    backend: Any, written: QuantizedDirectory, tmp_path: Path
) -> None:
    model = written.load()
    duquant.set_execution(model, backend)
    logits(model, IDS)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert stored_checksums(tmp_path) == stored_checksums(written.path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    duquant.set_execution(again, backend)
    assert torch.equal(logits(again, IDS), logits(model, IDS))


@pytest.mark.parametrize("family", ["llama-biases", "llama-tied"])
def test_a_cast_model_is_saved_with_checksums_of_its_own(family: str, tmp_path: Path) -> None:
    written = write_quantized(tmp_path, FAMILIES[family])
    model = written.load(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    before, after = stored_checksums(written.path), stored_checksums(tmp_path / "half")
    assert before.keys() == after.keys()
    assert before.pop(RECIPE) == after.pop(RECIPE)
    assert all(before[part] != after[part] for part in before), "norms were cast"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits(again, IDS), logits(model, IDS))


@pytest.mark.parametrize("offload_buffers", [False, True])
def test_an_offloaded_model_is_saved_with_its_checksums(
    offload_buffers: bool, written: QuantizedDirectory, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    model = written.load(
        device_map=OFFLOADED,
        offload_folder=tmp_path / "offloaded",
        offload_buffers=offload_buffers,
    )
    logits(model, IDS)
    with pytest.warns(UserWarning, match="save a model with offloaded modules"):
        model.save_pretrained(tmp_path / "saved")
    assert stored_checksums(tmp_path / "saved") == stored_checksums(written.path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again, IDS), logits(written.load(), IDS))


# The checksums themselves


def test_files_and_memory_agree_on_every_part(written: QuantizedDirectory) -> None:
    files = sorted(written.path.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    found = part_checksums(tensors, tensors.__getitem__)
    assert found == file_checksums(files)
    recipe = small_recipe().to_dict()
    assert {RECIPE: recipe_checksum(recipe), **found} == stored_checksums(written.path)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1, 3])},
        {"b": torch.tensor([1, 2])},
        {"a": torch.tensor([[1, 2]])},
        {"a": torch.tensor([1, 0, 2, 0], dtype=torch.int32)},
        {"a": torch.tensor([1, 2]), "b": torch.zeros(0)},
    ],
    ids=["value", "name", "shape", "dtype", "one more"],
)
def test_whatever_tells_tensors_apart_counts(other: dict[str, torch.Tensor]) -> None:
    tensors = {"a": torch.tensor([1, 2])}
    same = {"a": torch.tensor([[1, 9], [2, 9]])[:, 0]}
    checksum = part_checksums(tensors, tensors.__getitem__)
    assert part_checksums(same, same.__getitem__) == checksum
    assert part_checksums(other, other.__getitem__) != checksum


def test_a_recipe_read_back_from_json_has_the_checksum_of_the_written_one() -> None:
    recipe = small_recipe().to_dict()
    assert recipe_checksum(json.loads(json.dumps(recipe, indent=2))) == recipe_checksum(recipe)
    assert recipe_checksum({**recipe, "weight_bits": 5}) != recipe_checksum(recipe)
