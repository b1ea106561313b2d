"""A whole decoder, run and quantized block by block: the shortest path through the algorithm.

This is what the callbacks do, without Lightning, without learning and without files.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from duquant.config import (
    ClippingConfig,
    LWCConfig,
    Recipe,
    RotationConfig,
    SmoothingConfig,
)
from duquant.model.channel_ranges import observe_sites
from duquant.model.decoder import Decoder
from duquant.model.sample_decisions import calibrate_on_samples
from duquant.model.smoothing import smooth_block
from duquant.model.structure import LINEARS
from duquant.model.surgery import QuantizedBlock, calibrate_sites, insert_quantizers
from duquant.model.value_rotation import rotate_values, rotated_views
from duquant.nn.clipping import FixedClip

CPU = torch.device("cpu")


def small_recipe(
    bits: int = 4, *, block_size: int = 16, attention_output: str = "key_value_channel"
) -> Recipe:
    """All of DuQuant but LWC, in sizes that fit the tiny models."""
    return Recipe(
        weight_bits=bits,
        activation_bits=bits,
        smoothing=SmoothingConfig(attention_output=attention_output),  # type: ignore[arg-type]
        rotation=RotationConfig(block_size=block_size, max_steps=8),
        clipping=ClippingConfig(),
        lwc=LWCConfig(epochs=0),
    )


@torch.no_grad()
def run_blocks(
    decoder: Decoder, input_ids: Tensor, blocks: Sequence[nn.Module] | None = None
) -> Tensor:
    """Logits of ``input_ids``, with the decoder's own blocks or with ``blocks`` in their place."""
    hidden = decoder.embed(input_ids, CPU)
    for index, context in enumerate(decoder.contexts(input_ids.shape[1], CPU)):
        block = decoder.load_block(index) if blocks is None else blocks[index]
        hidden = block(hidden, **context)
    return decoder.logits(hidden)


@torch.no_grad()
def quantize_decoder(
    decoder: Decoder, recipe: Recipe, input_ids: Tensor, *, seed: int = 0, rounded: bool = True
) -> list[QuantizedBlock]:
    """Smooth, transform, quantize and round every block, calibrated on ``input_ids``."""
    generator = torch.Generator().manual_seed(seed)
    full_precision = decoder.embed(input_ids, CPU)
    calibration_mean = full_precision.mean(dim=0, keepdim=True)
    quantized_blocks = []
    for index, context in enumerate(decoder.contexts(input_ids.shape[1], CPU)):
        block = decoder.load_block(index)
        inputs, views = full_precision, rotated_views(block, recipe)
        with observe_sites(block, means=True, views=views) as ranges:
            full_precision = block(full_precision, **context)
        if recipe.rotation.rotate_values:
            rotate_values(block, recipe.rotation.block_size)
        smoothed = smooth_block(block, ranges, recipe)
        clips = {name: FixedClip(recipe.weight_ratio) for name in LINEARS}
        quantized = insert_quantizers(block, recipe, clips, smoothed)
        calibration_mean = calibrate_once(quantized, calibration_mean, context, recipe, generator)
        forward = partial(quantized.layer, **context)
        calibrate_on_samples(quantized, recipe, forward, partial(list, [inputs]))
        if rounded:
            quantized.round_to_nearest()
        quantized_blocks.append(quantized)
    return quantized_blocks


def calibrate_once(
    quantized: QuantizedBlock,
    calibration_mean: Tensor,
    context: dict[str, object],
    recipe: Recipe,
    generator: torch.Generator,
) -> Tensor:
    """Search the block's transforms on the calibration mean and pass it on."""
    return calibrate_sites(
        quantized, lambda: quantized.layer(calibration_mean, **context), recipe, generator
    )
