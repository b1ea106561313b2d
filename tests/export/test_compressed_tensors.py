"""Models in the layout of compressed-tensors, read again by that package and by transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from duquant.config import (
    ClippingConfig,
    FormatConfig,
    LWCConfig,
    Recipe,
    RotationConfig,
    SmoothingConfig,
)
from duquant.export.conversion import QuantizedSource, export_model
from duquant.export.targets.compressed_tensors import CompressedTensors
from tests.block_by_block import small_recipe
from tests.quantized_directory import logits, token_ids, write_quantized
from tests.tiny_models import FAMILIES

transform = pytest.importorskip("compressed_tensors.transform")
TransformConfig = transform.TransformConfig
apply_transform_config = transform.apply_transform_config

DEQUANTIZE = CompressedTensorsConfig(dequantize=True)
"""compressed-tensors 0.20 prepares modules for packed zero points that are not packed."""
IDS = token_ids(seed=3)
NO_TRANSFORM = RotationConfig(selector="none", block_size=16)
HADAMARD = RotationConfig(selector="hadamard", block_size=16, permutation_times=0)
WEIGHTS_ALONE = Recipe(
    activation_bits=16,
    rotation=NO_TRANSFORM,
    lwc=LWCConfig(epochs=0),
    clipping=ClippingConfig(activation_ratio=1.0),
)
RECIPES = {
    "4 bits": WEIGHTS_ALONE,
    "4 bits in groups": replace(WEIGHTS_ALONE, group_size=32),
    "4 bits symmetric": replace(
        WEIGHTS_ALONE, symmetric=True, clipping=ClippingConfig(weight_ratio=1.0)
    ),
    "8 bits in groups": replace(WEIGHTS_ALONE, weight_bits=8, group_size=16),
    "hadamard": replace(WEIGHTS_ALONE, rotation=HADAMARD),
    "hadamard symmetric": replace(
        WEIGHTS_ALONE,
        rotation=replace(HADAMARD, rotate_values=True),
        symmetric=True,
        clipping=ClippingConfig(weight_ratio=1.0),
    ),
}
W8A8 = replace(
    WEIGHTS_ALONE,
    weights=FormatConfig(format="integer", bits=8, symmetric=True),
    clipping=ClippingConfig(weight_ratio=1.0, activation_ratio=1.0),
    activation_bits=8,
    query_bits=16,
    key_bits=16,
    value_bits=16,
)


def load_there(directory: Path, **options: Any) -> Any:
    """As the directory's README says."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **options)
    stored = json.loads((directory / "config.json").read_text())["quantization_config"]
    if "transform_config" in stored:
        apply_transform_config(model, TransformConfig(**stored["transform_config"]))
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama-grouped", "qwen2"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_are_the_same_numbers(recipe: str, family: str, tmp_path: Path) -> None:
    quantized = write_quantized(tmp_path, FAMILIES[family], RECIPES[recipe])
    export_model(QuantizedSource(quantized.path), tmp_path / "there", CompressedTensors())
    options = {} if RECIPES[recipe].symmetric else {"quantization_config": DEQUANTIZE}
    there = load_there(tmp_path / "there", **options)
    ours = quantized.load()
    torch.testing.assert_close(logits(there, IDS), logits(ours, IDS), rtol=1e-4, atol=1e-4)
    for name, linear in ours.named_modules():
        if hasattr(linear, "dequantized"):
            weight = there.get_submodule(name).weight
            assert torch.equal(weight, linear.dequantized()), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rotation", [NO_TRANSFORM, HADAMARD], ids=lambda r: r.selector)
def test_activations_of_8_bits(rotation: RotationConfig, tmp_path: Path) -> None:
    recipe = replace(W8A8, rotation=rotation)
    quantized = write_quantized(tmp_path, FAMILIES["llama-grouped"], recipe)
    export_model(QuantizedSource(quantized.path), tmp_path / "there", CompressedTensors())
    there = load_there(tmp_path / "there")
    ours = logits(quantized.load(), IDS)
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32)
    # A last bit that turns a rounding over costs as much as the quantization of that token.
    difference = (logits(there, IDS) - ours).norm(dim=-1).median()
    assert difference < 0.1 * (logits(original, IDS) - ours).norm(dim=-1).median()


REFUSED = {
    "rotation.selector is 'outlier': only 'hadamard' and 'none'": small_recipe(),
    (
        "'outlier': .*; query_bits is 4, key_bits is 4, value_bits is 4: .*"
        "; activations are .* they must be 8 bits .*; activations are clipped"
    ): small_recipe(),
    "rotation.transform is 'affine_permute'": replace(
        small_recipe(), rotation=RotationConfig(transform="affine_permute"), lwc=LWCConfig()
    ),
    "permutation_times is 1: .* knows no permutation": replace(
        WEIGHTS_ALONE, rotation=replace(HADAMARD, permutation_times=1)
    ),
    "subtract_mean is true": replace(WEIGHTS_ALONE, smoothing=SmoothingConfig(subtract_mean=True)),
    "attention_output is 'query_channel'": replace(
        WEIGHTS_ALONE, smoothing=SmoothingConfig(attention_output="query_channel")
    ),
    "key_bits is 4": replace(WEIGHTS_ALONE, key_bits=4),
    "weights are integer of 3 bits": replace(WEIGHTS_ALONE, weight_bits=3),
    "weights are mxfp4 of 4 bits": replace(WEIGHTS_ALONE, weights=FormatConfig(format="mxfp4")),
    "they must be 8 bits per token": replace(W8A8, activation_bits=4),
    "weights must be 8 bits, symmetric": replace(W8A8, weights=FormatConfig(), weight_bits=4),
    "activations are clipped": replace(W8A8, clipping=ClippingConfig(weight_ratio=1.0)),
    r"clipping\.activations": replace(
        W8A8, clipping=ClippingConfig(weight_ratio=1.0, activation_ratio=1.0, activations="search")
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        CompressedTensors().model_config(REFUSED[reason], {})


@pytest.mark.parametrize("recipe", [*RECIPES.values(), W8A8])
def test_what_can_be_is_not(recipe: Recipe) -> None:
    assert CompressedTensors().model_config(recipe, {"a": 1}) == {"a": 1}


def test_weights_far_from_zero_do_not_fit(tmp_path: Path) -> None:
    quantized = write_quantized(tmp_path, FAMILIES["llama-grouped"], WEIGHTS_ALONE)
    block = QuantizedSource(quantized.path).block(0)
    block.mlp.up_proj.zero[3] = 17  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match=r"mlp.up_proj has zero points of \d+ to 17: .* 0 to 15"):
        CompressedTensors().tensors(block, WEIGHTS_ALONE)


def test_symmetric_weights_that_were_clipped_do_not_fit(tmp_path: Path) -> None:
    clipped = replace(WEIGHTS_ALONE, symmetric=True, clipping=ClippingConfig(weight_ratio=0.7))
    quantized = write_quantized(tmp_path, FAMILIES["llama-grouped"], clipped)
    with pytest.raises(ValueError, match=r"q_proj has a weight of 8 steps, .* ends at 7"):
        CompressedTensors().tensors(QuantizedSource(quantized.path).block(0), clipped)


def test_the_configuration_names_no_other_package(tmp_path: Path) -> None:
    quantized = write_quantized(tmp_path, FAMILIES["llama-tied"], WEIGHTS_ALONE)
    export_model(QuantizedSource(quantized.path), tmp_path / "there", CompressedTensors())
    config = json.loads((tmp_path / "there" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert "duquant" not in json.dumps(config)


def test_another_rotation_than_hadamards_is_refused(tmp_path: Path) -> None:
    recipe = RECIPES["hadamard"]
    quantized = write_quantized(tmp_path, FAMILIES["llama-grouped"], recipe)
    block = QuantizedSource(quantized.path).block(0)
    block.get_submodule("mlp.down_proj").site.transform.rotations[0, 0, 0, 1] *= -1  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match="mlp_output is rotated by another matrix"):
        CompressedTensors().tensors(block, recipe)
