"""float16 that overflows, and weights that make others overflow: block, site and remedy are named.

The weights themselves are finite in float16, so only what is computed with them tells.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import duquant
from duquant.config import Recipe, RotationConfig, SmoothingConfig
from duquant.model.checkpoint import WEIGHTS
from duquant.model.decoder import Decoder
from duquant.model.smoothing import Smoothed
from duquant.model.structure import LINEARS
from duquant.model.surgery import insert_quantizers
from duquant.nn.clipping import FixedClip
from tests.block_by_block import small_recipe
from tests.in_process import (
    LIGHTNING_WARNINGS,
    LWC,
    calibrate,
    small_data,
    small_language_model,
    write_text,
)
from tests.small_run import write_small_model

pytestmark = LIGHTNING_WARNINGS
SIZES = {"num_samples": 2, "sequence_length": 16}
SITES = {
    "self_attn.v_proj": "attention_output|attention_input|output",
    "mlp.up_proj": "mlp_output",
    "mlp.down_proj": "attention_input|output",
    "input_layernorm": "attention_output|attention_input|mlp_input|output",
}
"""Where an overflow shows that is made by the module: there, or behind it."""
RECIPES = {
    "search": small_recipe(),
    "hadamard": Recipe(rotation=RotationConfig(selector="hadamard", block_size=16), lwc=LWC),
    "no rotation": Recipe(
        rotation=RotationConfig(selector="none"), smoothing=SmoothingConfig(enabled=False), lwc=LWC
    ),
    "weights alone": Recipe(
        activation_bits=16, rotation=RotationConfig(selector="none"), lwc=small_recipe().lwc
    ),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_text(tmp_path_factory.mktemp("text") / "text.txt")
    return path.read_text(encoding="utf-8")


def overflowing(directory: Path, block: int, module: str) -> Path:
    """A model that float32 holds and float16 does not: one module gives numbers near 1e6."""
    write_small_model(directory, blocks=2)
    tensors = load_file(directory / WEIGHTS)
    name = f"model.layers.{block}.{module}.weight"
    tensors[name] *= 6e4 / tensors[name].abs().max()
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("block", "module"), [(0, "mlp.up_proj"), (1, "mlp.down_proj")])
def test_block_site_and_remedy_are_named(
    recipe: str, block: int, module: str, text: str, tmp_path: Path
) -> None:
    source = overflowing(tmp_path / "source", block, module)
    with pytest.raises(ValueError, match=f"^block {block}: .*({SITES[module]})") as told:
        duquant.quantize(
            source, text, RECIPES[recipe], output_dir=tmp_path / "model", dtype="float16", **SIZES
        )
    assert str(told.value).endswith("--model.dtype float32 or bfloat16")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("module", SITES)
def test_float32_calibrates_the_same_model(module: str, text: str, tmp_path: Path) -> None:
    source = overflowing(tmp_path / "source", 1, module)
    sizes: dict[str, Any] = {"output_dir": tmp_path / "half", "dtype": "float16", **SIZES}
    with pytest.raises(ValueError, match=f"^block 1: .*({SITES[module]}).* not finite in float16"):
        duquant.quantize(source, text, small_recipe(), **sizes)
    sizes |= {"output_dir": tmp_path / "whole", "dtype": "float32"}
    duquant.quantize(source, text, small_recipe(), **sizes)


def test_a_run_names_them_too(text: str, tmp_path: Path) -> None:
    source = overflowing(tmp_path / "source", 1, "mlp.up_proj")
    model = small_language_model(source, tmp_path / "run", dtype="float16")
    data = small_data(source, write_text(tmp_path / "text.txt"))
    with pytest.raises(ValueError, match=r"^block 1: .* mlp_output are not finite in float16"):
        calibrate(model, data)


def test_a_scale_that_folding_cannot_hold_names_the_linear(tmp_path: Path) -> None:
    """Smoothing multiplies a linear's columns; in float16 that may be too much."""
    block = Decoder(str(write_small_model(tmp_path, blocks=1)), torch.float16).load_block(0)
    block.get_submodule("mlp.gate_proj").get_parameter("weight")[3, 5] = torch.inf
    clips = dict.fromkeys(LINEARS, FixedClip(1.0))
    with pytest.raises(ValueError, match=r"1 of 6144 weights of mlp\.gate_proj are not finite in"):
        insert_quantizers(block, small_recipe(), clips, Smoothed())
