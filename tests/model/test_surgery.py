"""Surgery step by step: peaks, folding, insertion, calibration."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from duquant.config import LWCConfig, Recipe, RotationConfig, SmoothingConfig
from duquant.model.channel_ranges import ChannelRange, observe_sites
from duquant.model.smoothing import Smoothed, smooth_block
from duquant.model.structure import LINEARS, SITES, Site
from duquant.model.surgery import QuantizedBlock, calibrate_sites, insert_quantizers
from duquant.nn.attention import register_attention
from duquant.nn.attention_quantizer import ATTENTION_NAME
from duquant.nn.clipping import ClipFactors, FixedClip
from duquant.nn.site import SiteTransform
from duquant.transforms.identity import Identity
from tests.block_by_block import small_recipe
from tests.tiny_models import FAMILIES, tiny_model

FOLDING = ("llama", "llama-grouped", "llama-multi-query", "llama-biases", "llama-head-24", "qwen3")
TOKENS = 12


class Bench:
    """One block on the table, with an input and what its forward needs beside it."""

    def __init__(self, family: str) -> None:
        register_attention()
        model = tiny_model(FAMILIES[family]).requires_grad_(False)
        model.set_attn_implementation(ATTENTION_NAME)
        self.block: nn.Module = model.model.layers[0]
        positions = torch.arange(TOKENS).unsqueeze(0)
        angles = model.model.rotary_emb(torch.zeros(1), positions)
        self.context: dict[str, Any] = {"attention_mask": None, "position_embeddings": angles}
        self.hidden = torch.randn(
            2, TOKENS, model.config.hidden_size, generator=torch.Generator().manual_seed(1)
        )

    def run(self, hidden: Tensor | None = None) -> Tensor:
        output: Tensor = self.block(self.hidden if hidden is None else hidden, **self.context)
        return output

    def site_inputs(self) -> dict[str, Tensor]:
        """What the first linear of every site reads."""
        inputs: dict[str, Tensor] = {}
        handles = [
            self.block.get_submodule(site.linears[0]).register_forward_pre_hook(
                lambda _, given, name=site.name: inputs.update({name: given[0]})
            )
            for site in SITES
        ]
        self.run()
        for handle in handles:
            handle.remove()
        return inputs

    def ranges(self, *, means: bool = False) -> dict[str, ChannelRange]:
        with observe_sites(self.block, means=means) as ranges:
            self.run()
        return ranges

    def weight(self, name: str) -> Tensor:
        return self.block.get_submodule(name).get_parameter("weight")

    def quantize(self, recipe: Recipe) -> QuantizedBlock:
        smoothed = smooth_block(self.block, self.ranges(means=True), recipe)
        clips = {name: FixedClip(1.0) for name in LINEARS}
        return insert_quantizers(self.block, recipe, clips, smoothed)


@pytest.fixture
def bench() -> Bench:
    return Bench("llama-grouped")


# Peaks


def test_peaks_are_the_largest_magnitudes_of_all_batches(bench: Bench) -> None:
    with observe_sites(bench.block) as ranges:
        bench.run(bench.hidden[:1])
        bench.run(bench.hidden[1:])
    for name, x in bench.site_inputs().items():
        torch.testing.assert_close(ranges[name].peak(), x.abs().flatten(0, 1).amax(dim=0))
        assert ranges[name].peak().dtype == torch.float32


def test_no_hook_stays_behind_even_after_an_error(bench: Bench) -> None:
    with pytest.raises(RuntimeError, match="stop"), observe_sites(bench.block):
        raise RuntimeError("stop")
    assert not any(module._forward_pre_hooks for module in bench.block.modules())


# Smoothing


@pytest.mark.parametrize("weights", ["first", "all"])
@pytest.mark.parametrize("family", FOLDING)
def test_folding_leaves_the_plain_block_as_it_was(family: str, weights: Any) -> None:
    bench = Bench(family)
    before, reads = bench.run(), bench.site_inputs()
    recipe = Recipe(smoothing=SmoothingConfig(weights=weights))
    smoothed = smooth_block(bench.block, bench.ranges(), recipe)
    scales, online = smoothed.scales, smoothed.online
    assert not online
    # Scales between 0.1 and 10 in float32, on outputs up to 50.
    torch.testing.assert_close(bench.run(), before, rtol=1e-4, atol=1e-4)
    for name, x in bench.site_inputs().items():
        torch.testing.assert_close(x, reads[name] / scales[name], rtol=1e-3, atol=1e-4)


def test_a_norm_that_multiplies_by_one_plus_its_weight_divides_online() -> None:
    bench = Bench("gemma")
    before = bench.weight("input_layernorm").clone()
    smoothed = smooth_block(bench.block, bench.ranges(), Recipe())
    scales, online = smoothed.scales, smoothed.online
    assert set(online) == {"attention_input", "mlp_input"}
    assert all(online[name] is scales[name] for name in online)
    # Doubling and halving a weight to find out is exact.
    assert torch.equal(bench.weight("input_layernorm"), before)


@pytest.mark.parametrize("weights", ["first", "all"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_scales_follow_the_formula(weights: Any, alpha: float) -> None:
    bench = Bench("llama")
    ranges, expected = bench.ranges(), {}
    for site in SITES:
        names = site.linears if weights == "all" else site.linears[:1]
        largest = torch.cat([bench.weight(name).abs() for name in names]).amax(dim=0)
        expected[site.name] = ranges[site.name].peak() ** alpha / largest ** (1 - alpha)
    recipe = Recipe(smoothing=SmoothingConfig(weights=weights, alpha=alpha))
    scales = smooth_block(bench.block, ranges, recipe).scales
    for name, scale in scales.items():
        torch.testing.assert_close(scale, expected[name].clamp(min=1e-2))


def test_weights_are_multiplied_along_their_inputs(bench: Bench) -> None:
    before = {name: bench.weight(name).clone() for name in LINEARS}
    scales = smooth_block(bench.block, bench.ranges(), Recipe()).scales
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        site = next(site for site in SITES if name in site.linears)
        torch.testing.assert_close(bench.weight(name), before[name] * scales[site.name])


def test_grouped_heads_share_a_scale_that_folds_or_divide_online() -> None:
    shared = SmoothingConfig(attention_output="key_value_channel")
    bench = Bench("llama-grouped")
    smoothed = smooth_block(bench.block, bench.ranges(), Recipe(smoothing=shared))
    scales, online = smoothed.scales, smoothed.online
    heads = scales["attention_output"].view(2, 2, 16)
    assert torch.equal(heads[:, 0], heads[:, 1])
    assert not online
    own = SmoothingConfig(attention_output="query_channel")
    bench = Bench("llama-grouped")
    smoothed = smooth_block(bench.block, bench.ranges(), Recipe(smoothing=own))
    scales, online = smoothed.scales, smoothed.online
    assert set(online) == {"attention_output"}
    assert torch.equal(online["attention_output"], scales["attention_output"])
    heads = scales["attention_output"].view(2, 2, 16)
    assert not torch.allclose(heads[:, 0], heads[:, 1])


def test_nothing_is_touched_without_smoothing(bench: Bench) -> None:
    before = {name: tensor.clone() for name, tensor in bench.block.state_dict().items()}
    recipe = Recipe(smoothing=SmoothingConfig(enabled=False))
    assert smooth_block(bench.block, bench.ranges(), recipe) == Smoothed()
    assert all(torch.equal(before[name], t) for name, t in bench.block.state_dict().items())


# Insertion and calibration


def test_sixteen_bits_without_transform_change_nothing(bench: Bench) -> None:
    before = bench.run()
    recipe = Recipe(
        weight_bits=16,
        activation_bits=16,
        smoothing=SmoothingConfig(enabled=False),
        rotation=RotationConfig(selector="none"),
    )
    bench.quantize(recipe)
    # Q and K are still multiplied by a Hadamard matrix, which rounds their products anew.
    torch.testing.assert_close(bench.run(), before, rtol=1e-5, atol=1e-5)


def test_only_clip_factors_can_be_trained(bench: Bench) -> None:
    clips = {name: ClipFactors(bench.weight(name).shape[0]) for name in LINEARS}
    smoothed = smooth_block(bench.block, bench.ranges(), Recipe())
    quantized = insert_quantizers(bench.block, small_recipe(), clips, smoothed)
    trainable = {name for name, p in quantized.layer.named_parameters() if p.requires_grad}
    expected = {f"{name}.clip.{end}_logit" for name in LINEARS for end in ("high", "low")}
    assert trainable == expected


def test_sites_are_calibrated_in_order_on_quantized_inputs(bench: Bench) -> None:
    recipe = small_recipe(bits=3)
    quantized = bench.quantize(recipe)
    seen: list[tuple[str, Tensor]] = []
    weights = {name: linear.weight.clone() for name, linear in quantized.linears.items()}

    def observe(site: Site, module: SiteTransform, x: Tensor) -> None:
        assert module is quantized.sites[site.name]
        seen.append((site.name, x))

    output = calibrate_sites(
        quantized, bench.run, recipe, torch.Generator().manual_seed(0), observe=observe
    )
    assert [name for name, _ in seen] == [site.name for site in SITES]
    for site in SITES:
        transform = quantized.sites[site.name].transform
        for name in site.linears:
            expected = transform.on_weight(weights[name])
            assert torch.equal(quantized.linears[name].weight, expected)
    # The calibration pass is the quantized forward: the same tensors pass again.
    again: dict[str, Tensor] = {}
    for site in SITES:
        quantized.sites[site.name].register_forward_pre_hook(
            lambda module, given, name=site.name: again.update({name: given[0].flatten(0, -2)})
        )
    assert torch.equal(bench.run(), output)
    for name, x in seen:
        assert torch.equal(again[name], x)


def test_hooks_are_gone_after_calibration(bench: Bench) -> None:
    quantized = bench.quantize(small_recipe())
    calibrate_sites(quantized, bench.run, small_recipe(), torch.Generator().manual_seed(0))
    rotations = quantized.sites["mlp_input"].transform.rotations
    bench.run()
    assert quantized.sites["mlp_input"].transform.rotations is rotations


def test_the_selector_none_searches_nothing(bench: Bench) -> None:
    recipe = Recipe(rotation=RotationConfig(selector="none"), lwc=LWCConfig(epochs=0))
    quantized = bench.quantize(recipe)
    calibrate_sites(quantized, bench.run, recipe, torch.Generator())
    assert all(isinstance(site.transform, Identity) for site in quantized.sites.values())


def test_rounding_fixes_every_weight(bench: Bench) -> None:
    quantized = bench.quantize(small_recipe())
    calibrate_sites(quantized, bench.run, small_recipe(), torch.Generator().manual_seed(0))
    before = bench.run()
    quantized.round_to_nearest()
    assert torch.equal(bench.run(), before)
    for linear in quantized.linears.values():
        assert all(row.unique().numel() <= 16 for row in linear.weight)
