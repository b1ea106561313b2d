"""What a block's turn runs: statistics come with the targets, and nothing else is for them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from duquant.calibration import BlockCalibration
from duquant.config import (
    ClippingConfig,
    LWCConfig,
    Recipe,
    RotationConfig,
    RoundingConfig,
)
from duquant.data.streams import Streams, StreamSizes
from duquant.model.structure import linear_shapes
from duquant.modules.block import QuantBlock, block_generator
from tests.tiny_models import tiny_model

CPU = torch.device("cpu")
SAMPLES, TOKENS = 5, 12
ROTATION = RotationConfig(block_size=8, max_steps=4)


def samples_seen(recipe: Recipe, tokens: int = TOKENS) -> tuple[int, int]:
    """Samples that passed a block, forwards in full precision and quantized: entered, finished."""
    model = tiny_model({"model_type": "llama"})
    layer, hidden = model.model.layers[0], model.config.hidden_size
    stream = torch.randn(SAMPLES, tokens, hidden)
    positions = torch.arange(tokens).unsqueeze(0)
    context = {"position_embeddings": model.model.rotary_emb(stream, positions)}
    seen: list[int] = []

    def count(module: nn.Module, arguments: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        seen.append(len(arguments[0]))

    layer.register_forward_pre_hook(count, with_kwargs=True)
    streams = Streams(stream, stream.clone(), stream.mean(dim=0, keepdim=True))
    sizes = StreamSizes.of(recipe, SAMPLES, tokens, hidden, torch.float32)
    block = QuantBlock(linear_shapes(layer), recipe)
    calibration = BlockCalibration(block, streams, Streams.draft(sizes), context, CPU)
    calibration.enter(layer, block_generator(0, 0))
    entered = sum(seen)
    calibration.finish(None)
    return entered, sum(seen) - entered


@pytest.mark.parametrize("augmented", [False, True])
def test_every_sample_passes_once_for_targets_and_statistics(augmented: bool) -> None:
    """Then the mean sample for the search, and every sample through the quantized block.

    So few tokens are all probed for the block's error too.
    """
    recipe = Recipe(rotation=ROTATION, lwc=LWCConfig(epochs=1, augmented_loss=augmented))
    assert samples_seen(recipe) == (SAMPLES * (1 + augmented) + 1, SAMPLES * 2)


def test_what_gptq_takes_besides() -> None:
    """Few samples for clip ratios and before rounding; two passes for the Gram matrices."""
    recipe = Recipe(
        rotation=ROTATION,
        clipping=ClippingConfig(activations="search"),
        lwc=LWCConfig(epochs=0),
        rounding=RoundingConfig(method="gptq"),
    )
    assert samples_seen(recipe, tokens=300) == (SAMPLES + 1 + 4, 1 + 2 * SAMPLES + SAMPLES * 2)
