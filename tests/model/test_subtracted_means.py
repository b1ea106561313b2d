"""Subtracted means and rotated V: exact at 16 bits, and constant channels cost nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from duquant.config import Recipe
from duquant.model.channel_ranges import ChannelRange
from duquant.model.decoder import Decoder
from duquant.model.structure import LINEARS
from tests.block_by_block import quantize_decoder, run_blocks, small_recipe
from tests.tiny_models import FAMILIES, token_ids, write_tiny_model


def with_means(recipe: Recipe, *, values: bool = False) -> Recipe:
    return replace(
        recipe,
        smoothing=replace(recipe.smoothing, subtract_mean=True),
        rotation=replace(recipe.rotation, rotate_values=values),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_changes_at_sixteen_bits(family: str, tmp_path: Path) -> None:
    decoder = Decoder(str(write_tiny_model(tmp_path, FAMILIES[family])), torch.float32)
    expected = run_blocks(decoder, token_ids())
    recipe = with_means(small_recipe(16), values=True)
    blocks = quantize_decoder(decoder, recipe, token_ids(seed=1))
    for block in blocks:
        assert all(site.mean.abs().max() > 0 for site in block.sites.values())
    logits = run_blocks(decoder, token_ids(), [block.layer for block in blocks])
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


def test_the_means_part_of_q_k_and_v_is_added_behind_their_quantization(tmp_path: Path) -> None:
    decoder = Decoder(str(write_tiny_model(tmp_path, FAMILIES["llama"])), torch.float32)
    (block, *_) = quantize_decoder(decoder, with_means(small_recipe()), token_ids())
    quantizer = block.layer.self_attn.attention_quantizer  # type: ignore[union-attr]
    assert {name for name, _ in quantizer.biases.named_buffers()} == {"query", "key", "value"}  # type: ignore[union-attr]
    own = {name for name in LINEARS if block.linears[name].bias is not None}
    assert own == set(LINEARS) - {f"self_attn.{each}_proj" for each in "qkv"}


def test_constant_channels_cost_no_levels(tmp_path: Path) -> None:
    """A channel that is 50 times as large as the others, and the same for every token."""
    decoder = Decoder(str(write_tiny_model(tmp_path, FAMILIES["llama"])), torch.float32)
    ids = token_ids()
    plain, centred = (
        quantize_decoder(decoder, recipe, ids)
        for recipe in (small_recipe(), with_means(small_recipe()))
    )
    site, other = (blocks[0].sites["mlp_input"] for blocks in (plain, centred))
    tokens = torch.randn(64, site.width, generator=torch.Generator().manual_seed(0))
    tokens[:, 5] = 50 + 0.1 * tokens[:, 5]
    site.subtract(torch.zeros(0))
    other.subtract(ChannelRange.of(tokens, means=True).mean)
    for each in (site, other):
        each.transform = plain[0].sites["mlp_input"].transform
    errors = [
        (each(tokens) - each.transformed(tokens)).square().sum().item() for each in (site, other)
    ]
    assert errors[1] < 0.1 * errors[0]


def test_a_massive_token_does_not_decide_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = 0.5 + torch.randn(200, 8, generator=generator)
    massive = tokens.clone()
    massive[7] = torch.tensor([0.0, 5000, 0, 0, 0, 0, 0, -3000])
    plain, disturbed = (ChannelRange.of(each, means=True).mean for each in (tokens, massive))
    torch.testing.assert_close(disturbed, plain, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "tokens",
    [torch.zeros(4, 3), torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([[0.0, 1e-30, 0]])],
)
def test_means_of_few_and_dead_tokens_are_finite(tokens: torch.Tensor) -> None:
    seen = ChannelRange.of(tokens, means=True)
    assert seen.mean.isfinite().all()
    assert torch.equal(seen.peak(around_mean=True), seen.peak(around_mean=True).abs())


def test_ranges_of_parts_join_to_that_of_the_whole() -> None:
    tokens = torch.randn(30, 5)
    whole = ChannelRange.of(tokens, means=True)
    joined = ChannelRange.of(tokens[:11], means=True).join(ChannelRange.of(tokens[11:], means=True))
    torch.testing.assert_close(joined.mean, whole.mean)
    assert torch.equal(joined.peak(), tokens.abs().amax(dim=0))
    low, high = tokens.amin(dim=0) - whole.mean, tokens.amax(dim=0) - whole.mean
    assert torch.equal(whole.peak(around_mean=True), torch.maximum(high, -low))
