"""What a block stores in floating point, as it is foretold without one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from duquant.config import ClippingConfig, Recipe, RotationConfig, SmoothingConfig
from duquant.export.float_tensors import float_shapes
from duquant.export.packed_block import pack_block
from duquant.model.decoder import Decoder
from duquant.model.structure import LINEARS
from tests.block_by_block import quantize_decoder
from tests.export.test_packed_block import NO_LWC, PLAIN, RECIPES, fresh_block
from tests.tiny_models import FAMILIES, token_ids, write_tiny_model

IDS = token_ids(2, 20)
MEANS = replace(PLAIN, smoothing=SmoothingConfig(subtract_mean=True))
SEARCHED = replace(PLAIN, lwc=NO_LWC, clipping=ClippingConfig(activations="search"))
MORE = {
    **RECIPES,
    "means": MEANS,
    "means, attention at 16 bits": replace(MEANS, query_bits=16, key_bits=16, value_bits=16),
    "searched clips": SEARCHED,
    "searched clips, Q at 16 bits": replace(SEARCHED, query_bits=16),
    "rotated values": replace(
        MEANS, rotation=RotationConfig(block_size=16, max_steps=8, rotate_values=True)
    ),
}
PARTS_OF_WEIGHTS = {"packed", "scale", "zero", "weight"}


def is_expected(name: str, tensor: torch.Tensor) -> bool:
    """Whether a stored tensor is neither codes nor their scales, nor an online division."""
    owner, _, part = name.rpartition(".")
    of_weight = owner in LINEARS and part in PARTS_OF_WEIGHTS
    return tensor.is_floating_point() and not of_weight and part not in {"online_scale", "peak"}


def require_equal(directory: Path, recipe: Recipe) -> None:
    decoder = Decoder(str(directory), torch.float32)
    blocks = quantize_decoder(decoder, recipe, IDS)
    for index, block in enumerate(blocks):
        stored = pack_block(block)
        expected = {n: tuple(t.shape) for n, t in stored.items() if is_expected(n, t)}
        assert float_shapes(fresh_block(decoder, index), recipe) == expected


@pytest.mark.parametrize("name", MORE)
def test_every_recipe(tmp_path: Path, name: str) -> None:
    require_equal(write_tiny_model(tmp_path, FAMILIES["llama-grouped"]), MORE[name])


@pytest.mark.parametrize("recipe", ["means", "searched clips", "W4A16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path: Path, family: str, recipe: str) -> None:
    require_equal(write_tiny_model(tmp_path, FAMILIES[family]), MORE[recipe])
