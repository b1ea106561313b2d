"""The variants of a model whose perplexity is measured, one block at a time."""

from collections.abc import Container, Iterator
from dataclasses import replace

from torch import nn

from duquant.config import (
    ClippingConfig,
    DistillationConfig,
    LWCConfig,
    Recipe,
    RotationConfig,
    RoundingConfig,
    SmoothingConfig,
    TrainingConfig,
)
from duquant.export.model_directory import ModelDirectory
from duquant.model.decoder import Decoder
from duquant.model.smoothing import Smoothed
from duquant.model.structure import LINEARS
from duquant.model.surgery import insert_quantizers
from duquant.nn.clipping import FixedClip

FULL_PRECISION = "full_precision"
ROUND_TO_NEAREST = "round_to_nearest"
QUANTIZED = "quantized"


def round_to_nearest(recipe: Recipe) -> Recipe:
    """The baseline beside a recipe: the same bits and groups, nothing else.

    No smoothing, no block rotation, no clipping, no learning; Q and K keep their Hadamard, and
    biases of Q, K and V stay out of the quantization.
    """
    return replace(
        recipe,
        smoothing=SmoothingConfig(enabled=False),
        rotation=RotationConfig(selector="none", block_size=recipe.rotation.block_size),
        clipping=ClippingConfig(weight_ratio=1.0, activation_ratio=1.0),
        lwc=LWCConfig(epochs=0),
        training=TrainingConfig(),
        rounding=RoundingConfig(),
        distillation=DistillationConfig(),
    )


def describe_baseline(recipe: Recipe) -> str:
    """What plain rounding does otherwise than the recipe, beyond its options; empty if nothing.

    Its activations are not calibrated, so scales that belong to a whole tensor are dynamic.
    """
    formats = recipe.formats._asdict()
    del formats["weights"]
    dynamic = [name for name, form in formats.items() if form.needs_peak]
    if not dynamic:
        return ""
    return (
        f"round to nearest is not calibrated: the tensor scales of its {', '.join(dynamic)} are "
        f"those of the tokens measured together"
    )


def load_variants(
    wanted: Container[str], index: int, decoder: Decoder, directory: ModelDirectory, recipe: Recipe
) -> Iterator[tuple[str, nn.Module]]:
    """One block of every variant by name, on the CPU.

    One at a time: asking for the next variant may change the block of the one before.

    Args:
        wanted: names of the variants.
        index: which block.
        decoder: the original model.
        directory: the quantized one.
        recipe: its recipe, whose bits plain rounding has too.
    """
    if FULL_PRECISION in wanted or ROUND_TO_NEAREST in wanted:
        block = decoder.load_block(index)
        if FULL_PRECISION in wanted:
            yield FULL_PRECISION, block
        if ROUND_TO_NEAREST in wanted:
            clips = dict.fromkeys(LINEARS, FixedClip(1.0))
            quantized = insert_quantizers(block, round_to_nearest(recipe), clips, Smoothed())
            quantized.round_to_nearest()
            yield ROUND_TO_NEAREST, quantized.layer
            del quantized
        del block
    if QUANTIZED in wanted:
        yield QUANTIZED, directory.read_block(index, decoder)
