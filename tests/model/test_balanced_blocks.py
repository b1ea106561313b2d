"""Balanced bases of Q, K and of sites, and searched clip ratios: exact at 16 bits, better at 4."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from duquant.calibration import BlockCalibration, open_streams
from duquant.config import LWCConfig, Recipe, RotationConfig
from duquant.data.streams import Streams, StreamSizes
from duquant.formats.integer import Integer
from duquant.model.activation_clips import RATIOS
from duquant.model.decoder import Decoder
from duquant.model.structure import SITES, linear_shapes
from duquant.model.surgery import QuantizedBlock, activation_quantizers
from duquant.modules.block import QuantBlock
from duquant.transforms.affine_permute import AffinePermute
from duquant.transforms.site_moments import SiteMoments
from tests.block_by_block import CPU, run_blocks, small_recipe
from tests.tiny_models import FAMILIES, token_ids, write_tiny_model

BALANCED = RotationConfig(
    block_size=16, max_steps=8, transform="affine_permute", balance=True, balance_queries=True
)


def calibrated(decoder: Decoder, recipe: Recipe, windows: torch.Tensor) -> list[QuantizedBlock]:
    """Every block entered and rounded; the first ones' errors reach the later ones."""
    shapes = linear_shapes(decoder.meta_block())
    sizes = StreamSizes.of(recipe, *windows.shape, decoder.hidden_size, decoder.dtype)
    streams = Streams.draft(sizes, at_start=True)
    open_streams(decoder, windows, streams, CPU)
    blocks = []
    for index, context in enumerate(decoder.contexts(windows.shape[1], CPU)):
        block = QuantBlock(shapes, recipe, index)
        calibration = BlockCalibration(block, streams, Streams.draft(sizes), context, CPU)
        calibration.enter(decoder.load_block(index), torch.Generator().manual_seed(index))
        assert block.quantized is not None
        blocks.append(block.quantized)
        streams = calibration.finish(None)
        conditions = calibration.conditions
        assert set(conditions) == {site.name for site in SITES}
        assert all(1 <= condition < 1e4 for condition in conditions.values())
    return blocks


def bits(bits: int) -> Recipe:
    # At 16 bits Q and K are not touched.
    return replace(small_recipe(bits), rotation=BALANCED, lwc=LWCConfig(epochs=0))


@pytest.mark.parametrize("family", FAMILIES)
def test_fifteen_bits_change_nothing(family: str, tmp_path: Path) -> None:
    decoder = Decoder(str(write_tiny_model(tmp_path, FAMILIES[family])), torch.float32)
    expected = run_blocks(decoder, token_ids())
    recipe = bits(15)
    recipe = replace(
        recipe, clipping=replace(recipe.clipping, activation_ratio=1.0, weight_ratio=1.0)
    )
    blocks = calibrated(decoder, recipe, token_ids(seed=1))
    for block in blocks:
        attention = block.layer.self_attn.attention_quantizer  # type: ignore[union-attr]
        assert attention.query_basis.shape == attention.key_basis.shape
        assert attention.query_basis.numel()  # type: ignore[operator]
    logits = run_blocks(decoder, token_ids(), [block.layer for block in blocks])
    torch.testing.assert_close(logits, expected, rtol=0, atol=3e-3 * float(expected.abs().max()))


def test_balanced_blocks_lose_less_where_tokens_and_weights_have_directions() -> None:
    """Correlated channels on both sides: rotations cannot see them, balanced blocks can."""
    generator = torch.Generator().manual_seed(0)
    options = replace(BALANCED, block_size=16)
    mixing = torch.randn(32, 32, generator=generator) * torch.logspace(0, 1.5, 32)
    tokens = torch.randn(400, 32, generator=generator) @ mixing.t()
    weight = torch.randn(64, 32, generator=generator) @ torch.linalg.inv(mixing)
    form, errors = Integer(4), []
    for moments in (None, SiteMoments.of(tokens[:200], weight, lambda each: each)):
        transform = AffinePermute.search(tokens[:50], options, generator, None, moments)
        changed, weights = transform(tokens[200:]), transform.on_weight(weight)
        products = form.fake_quantize(changed) @ form.fake_quantize(weights).t()
        expected = tokens[200:] @ weight.t()
        errors.append(float((products - expected).norm() / expected.norm()))
    assert errors[1] < 0.7 * errors[0]


def test_a_site_takes_the_ratio_that_costs_least(tmp_path: Path) -> None:
    decoder = Decoder(str(write_tiny_model(tmp_path, FAMILIES["llama"])), torch.float32)
    recipe = small_recipe()
    recipe = replace(recipe, clipping=replace(recipe.clipping, activations="search"))
    shapes = linear_shapes(decoder.meta_block())
    windows = token_ids(4, 32, seed=1)
    sizes = StreamSizes.of(recipe, *windows.shape, decoder.hidden_size, decoder.dtype)
    streams = Streams.draft(sizes, at_start=True)
    open_streams(decoder, windows, streams, CPU)
    context = next(iter(decoder.contexts(32, CPU)))
    block = QuantBlock(shapes, recipe, 0)
    calibration = BlockCalibration(block, streams, Streams.draft(sizes), context, CPU)
    calibration.enter(decoder.load_block(0), torch.Generator().manual_seed(0))
    quantized = block.quantized
    assert quantized is not None
    site = quantized.sites["mlp_output"]
    ratio = float(site.quantizer.clip_ends[0])
    assert ratio in torch.tensor(RATIOS)
    found = {name: q.clip_ends for name, q in activation_quantizers(quantized).items()}
    assert all(ends.shape == (2,) and ends[0] == ends[1] for ends in found.values())

    tokens = []
    handle = site.quantizer.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    with torch.no_grad():
        block(streams.quantized[:4])
        handle.remove()
        rows = tokens[0].flatten(0, -2)
        weight = quantized.linears["mlp.down_proj"].weight

        def error(ratio: float) -> float:
            site.quantizer.hold_clip_ends(torch.full((2,), ratio))
            lost, whole = (site.quantizer(rows) - rows) @ weight.t(), rows @ weight.t()
            return float((lost.square().sum(-1) / whole.square().sum(-1)).mean())

        assert error(ratio) <= min(error(each) for each in RATIOS) * 1.02  # others changed theirs


def test_what_cannot_be_balanced_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rotation\.balance is true, but rotation\.transform is"):
        RotationConfig(balance=True)
    with pytest.raises(ValueError, match=r"clipping\.activations is 'guess'"):
        replace(small_recipe().clipping, activations="guess")  # type: ignore[arg-type]
