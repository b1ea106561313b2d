"""What a block's turn runs: statistics come with the targets, and nothing else is for them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from duquant.calibration import enter_block, finish_block
from duquant.config import LWCConfig, Recipe, RotationConfig
from duquant.data.streams import Streams, StreamSizes
from duquant.model.structure import linear_shapes
from duquant.modules.block import QuantBlock, block_generator
from tests.tiny_models import tiny_model

CPU = torch.device("cpu")
SAMPLES, TOKENS = 5, 12


@pytest.mark.parametrize("augmented", [False, True])
def test_every_sample_passes_once_for_targets_and_statistics(augmented: bool) -> None:
    """Then the mean sample for the search, and every sample through the quantized block.

    So few tokens are all probed for the block's error too.
    """
    model = tiny_model({"model_type": "llama"})
    layer, hidden = model.model.layers[0], model.config.hidden_size
    recipe = Recipe(
        rotation=RotationConfig(block_size=8, max_steps=4),
        lwc=LWCConfig(epochs=1, augmented_loss=augmented),
    )
    stream = torch.randn(SAMPLES, TOKENS, hidden)
    positions = torch.arange(TOKENS).unsqueeze(0)
    context = {"position_embeddings": model.model.rotary_emb(stream, positions)}
    seen: list[int] = []

    def count(module: nn.Module, arguments: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        seen.append(len(arguments[0]))

    layer.register_forward_pre_hook(count, with_kwargs=True)
    streams = Streams(stream, stream.clone(), stream.mean(dim=0, keepdim=True))
    sizes = StreamSizes.of(recipe, SAMPLES, TOKENS, hidden, torch.float32)
    block = QuantBlock(linear_shapes(layer), recipe)
    turn = enter_block(
        block, layer, streams, Streams.draft(sizes), context, block_generator(0, 0), CPU
    )
    assert sum(seen) == SAMPLES * (1 + augmented) + 1
    finish_block(block, turn, CPU)
    assert sum(seen) == SAMPLES * (3 + augmented) + 1
