"""What is decided on samples, clip ratios of activations, and what targets are made of."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from duquant.calibration import BlockCalibration, open_streams
from duquant.config import Recipe
from duquant.data.streams import Streams, StreamSizes
from duquant.model.activation_clips import RATIOS
from duquant.model.decoder import Decoder
from duquant.model.structure import linear_shapes
from duquant.model.surgery import activation_quantizers
from duquant.modules.block import QuantBlock
from tests.block_by_block import CPU, small_recipe
from tests.tiny_models import FAMILIES, token_ids, write_tiny_model


def entered(decoder: Decoder, recipe: Recipe) -> BlockCalibration:
    """Block 0 behind whatever is decided before it is trained."""
    windows = token_ids(4, 32, seed=1)
    sizes = StreamSizes.of(recipe, *windows.shape, decoder.hidden_size, decoder.dtype)
    streams = Streams.draft(sizes, at_start=True)
    open_streams(decoder, windows, streams, CPU)
    block = QuantBlock(linear_shapes(decoder.meta_block()), recipe, 0)
    context = next(iter(decoder.contexts(windows.shape[1], CPU)))
    calibration = BlockCalibration(block, streams, Streams.draft(sizes), context, CPU)
    calibration.enter(decoder.load_block(0), torch.Generator().manual_seed(0))
    return calibration


@pytest.mark.parametrize(
    ("name", "linears"),
    [
        ("mlp_output", ["mlp.down_proj"]),  # fewer outputs than inputs
        ("mlp_input", ["mlp.up_proj", "mlp.gate_proj"]),  # more
    ],
)
def test_a_site_takes_the_ratio_that_costs_least(
    name: str, linears: list[str], tmp_path: Path
) -> None:
    decoder = Decoder(str(write_tiny_model(tmp_path, FAMILIES["llama"])), torch.float32)
    recipe = small_recipe()
    recipe = replace(recipe, clipping=replace(recipe.clipping, activations="search"))
    calibration = entered(decoder, recipe)
    block = calibration.block
    quantized = block.quantized
    assert quantized is not None
    site = quantized.sites[name]
    ratio = float(site.quantizer.clip_ends[0])
    assert ratio in torch.tensor(RATIOS)
    found = {each: q.clip_ends for each, q in activation_quantizers(quantized).items()}
    assert all(ends.shape == (2,) and ends[0] == ends[1] for ends in found.values())

    tokens = []
    handle = site.quantizer.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    with torch.no_grad():
        block(calibration.quantized_stream[:4])
        handle.remove()
        rows = tokens[0].flatten(0, -2)
        weight = torch.cat([quantized.linears[each].weight for each in linears])

        def error(ratio: float) -> float:
            site.quantizer.hold_clip_ends(torch.full((2,), ratio))
            lost, whole = (site.quantizer(rows) - rows) @ weight.t(), rows @ weight.t()
            return float((lost.square().sum(-1) / whole.square().sum(-1)).mean())

        assert error(ratio) <= min(error(each) for each in RATIOS) * 1.02  # others changed theirs


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clipping\.activations is 'guess'"):
        replace(small_recipe().clipping, activations="guess")  # type: ignore[arg-type]


def test_targets_are_those_of_the_model_whose_v_is_rotated(tmp_path: Path) -> None:
    """In bfloat16 a folded rotation rounds weights: what is learned from must not know of it."""
    decoder = Decoder(str(write_tiny_model(tmp_path, FAMILIES["llama"])), torch.bfloat16)
    plain = small_recipe()
    targets, scales = [], []
    for recipe in (plain, replace(plain, rotation=replace(plain.rotation, rotate_values=True))):
        calibration = entered(decoder, recipe)
        targets.append(calibration.behind.full_precision)
        quantized = calibration.block.quantized
        assert quantized is not None
        scales.append(quantized.scales["attention_output"])
    assert torch.equal(*targets)
    assert not torch.equal(*scales)
