"""Channels that a weight does not read, or that calibration did not excite, ruin nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from duquant.config import SmoothingConfig
from duquant.model.decoder import Decoder
from duquant.nn.attention import register_attention
from tests.block_by_block import quantize_decoder, run_blocks, small_recipe
from tests.tiny_models import FAMILIES, SIZES, VOCABULARY, tiny_model, token_ids

SEEDS = (1,)
CHANNELS = [5, 41]
SEEN = VOCABULARY // 2
"""Calibration has the tokens below this one only."""
AttentionOutput = Literal["key_value_channel", "query_channel"]
Weights = Literal["first", "all"]


def relative_error(
    directory: Path, plant: Callable[[Any, int], None], smoothing: SmoothingConfig
) -> float:
    """Of the logits of models that ``plant`` has changed, over the seeds."""
    register_attention()
    recipe, errors = replace(small_recipe(), smoothing=smoothing), []
    for seed in SEEDS:
        model = tiny_model(FAMILIES["llama-grouped"], seed=seed)
        plant(model, seed)
        model.save_pretrained(directory / str(seed))
        decoder, ids = Decoder(str(directory / str(seed)), torch.float32), token_ids(4, seed=seed)
        blocks = quantize_decoder(decoder, recipe, 3 + ids % (SEEN - 3))
        for block in blocks:
            block.freeze()
        expected = run_blocks(decoder, ids)
        difference = run_blocks(decoder, ids, [block.layer for block in blocks]) - expected
        errors.append(float(difference.norm() / expected.norm()))
    return sum(errors) / len(errors)


def nothing(model: Any, seed: int) -> None:
    pass


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Errors without dead channels, by whose maxima enter the scales."""
    settings = {weights: SmoothingConfig(weights=weights) for weights in ("first", "all")}  # type: ignore[arg-type]
    return {
        weights: relative_error(tmp_path_factory.mktemp("model"), nothing, setting)
        for weights, setting in settings.items()
    }


@pytest.mark.parametrize(
    ("weights", "linears", "magnitude", "attention_output"),
    [
        ("first", "q", 0, "key_value_channel"),
        ("first", "q", 1e-6, "query_channel"),
        ("first", "q", 3e-4, "key_value_channel"),
        ("first", "k v", 0, "key_value_channel"),
        ("first", "o", 0, "query_channel"),
        ("first", "up", 0, "key_value_channel"),
        ("first", "gate", 1e-6, "key_value_channel"),
        ("first", "q k v o up gate down", 5e-6, "key_value_channel"),
        ("all", "q o up", 0, "key_value_channel"),
        ("all", "q k v up gate down", 0, "key_value_channel"),
    ],
)
def test_dead_columns(
    weights: Weights,
    linears: str,
    magnitude: float,
    attention_output: AttentionOutput,
    unharmed: dict[str, float],
    tmp_path: Path,
) -> None:
    def plant(model: Any, seed: int) -> None:
        for layer in model.model.layers:
            for name in linears.split():
                parent = layer.self_attn if name in "q k v o" else layer.mlp
                weight = parent.get_submodule(f"{name}_proj").weight.data
                weight[:, CHANNELS] *= magnitude / weight[:, CHANNELS].abs().amax(dim=0)

    smoothing = SmoothingConfig(weights=weights, attention_output=attention_output)
    # Another model errs a little more or less; a ruined grid doubles the error.
    assert relative_error(tmp_path, plant, smoothing) < 1.25 * unharmed[weights]


@pytest.mark.parametrize(("weights", "size"), [("first", 0.1), ("first", 8.0), ("all", 1.0)])
def test_channels_that_only_unseen_tokens_excite(
    weights: Weights, size: float, unharmed: dict[str, float], tmp_path: Path
) -> None:
    def plant(model: Any, seed: int) -> None:
        embeddings: Tensor = model.model.embed_tokens.weight.data
        generator = torch.Generator().manual_seed(seed)
        rare = torch.randn(VOCABULARY - SEEN, len(CHANNELS), generator=generator)
        embeddings[:, CHANNELS] = 0
        embeddings[SEEN:, CHANNELS] = size * rare * SIZES["hidden_size"] ** -0.5
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.data[CHANNELS] = 0
            layer.mlp.down_proj.weight.data[CHANNELS] = 0

    smoothing = SmoothingConfig(weights=weights)
    assert relative_error(tmp_path, plant, smoothing) < 1.25 * unharmed[weights]
