"""Thin samples of models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from duquant.config import Recipe, RotationConfig
from duquant.model.decoder import Decoder
from duquant.model.structure import require_fitting_widths
from duquant.preflight import thin_model
from duquant.preflight.thin_model import thin_config, write_thin_model
from tests.tiny_models import FAMILIES, write_tiny_model

RECIPE = Recipe(rotation=RotationConfig(block_size=16))
SIZES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40},
    "30b": {"hidden_size": 6656, "intermediate_size": 17920, "num_attention_heads": 52},
    "llama-3-70b": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "qwen-2.5-7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "ref-llama": {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8},
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_a_thin_block_has_the_proportions_of_the_thick_one(size: str) -> None:
    config = AutoConfig.for_model("llama", **SIZES[size])
    recipe = Recipe(rotation=RotationConfig(block_size=64))
    thin = thin_config(config, recipe)
    divisor = config.hidden_size / thin.hidden_size
    assert thin.hidden_size <= 2 * thin_model.WIDEST
    assert thin.num_hidden_layers == 1
    assert config.num_attention_heads / thin.num_attention_heads == divisor
    assert thin.intermediate_size == pytest.approx(config.intermediate_size / divisor, rel=0.05)
    assert not thin.hidden_size % 64
    assert not thin.intermediate_size % 64
    assert (divisor == 1) == (config.hidden_size <= thin_model.WIDEST)


@pytest.mark.parametrize("widest", [32, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_thin_block(
    family: str, widest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thin_model, "WIDEST", widest)
    source = write_tiny_model(tmp_path / "source", FAMILIES[family])
    before = torch.random.get_rng_state()
    thin = write_thin_model(tmp_path / "thin", Decoder(str(source), torch.float32), RECIPE)
    assert torch.equal(torch.random.get_rng_state(), before), "nobody else's randomness is used"
    assert thin.num_blocks == 1
    assert thin.hidden_size in (32, 64)
    require_fitting_widths(thin.meta_block(), RECIPE)
    assert thin.load_block(0).self_attn.q_proj.weight.isfinite().all()
