"""Surgery on one decoder block: smooth it, put quantized linears and sites in, search transforms.

The steps, in order (DuQuant section 3; sites as in :data:`duquant.model.structure.SITES`):

1. The full-precision block runs and :mod:`duquant.model.smoothing` observes ``max|x|`` per channel
   of every site.
2. The channel scales are folded into norms and weights, there too.
3. :func:`insert_quantizers` replaces linears and norms; nothing is rotated yet.
4. :func:`calibrate_sites` sends one calibration tensor through the block. Each site searches its
   transform on what reaches it, rotates its linears and quantizes, so the next site already sees
   quantized inputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.model.smoothing import Smoothed
from duquant.model.structure import ATTENTION, LINEARS, SITES, Site
from duquant.model.watched_inputs import watching
from duquant.nn.activation import ActivationQuantizer
from duquant.nn.attention import install_attention_quantizer
from duquant.nn.attention_bias import AttentionBiases, projection_of, separable_biases
from duquant.nn.attention_hook import quantize_before_cache
from duquant.nn.attention_quantizer import AttentionQuantizer
from duquant.nn.clipping import ClipFactors, FixedClip
from duquant.nn.linear import QuantLinear
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.site import SiteNorm, SiteTransform
from duquant.ops.finite import require_each_finite, require_finite
from duquant.ops.rotation import BaseSource
from duquant.rounding.nearest import Nearest
from duquant.transforms.table import transform_class

Clip = ClipFactors | FixedClip
SiteObserver = Callable[[Site, SiteTransform, Tensor], None]
"""Called with the tensor a site was calibrated on, smoothed but not yet rotated."""


@dataclass
class QuantizedBlock:
    """A decoder block after surgery, kept outside of any module tree.

    Attributes:
        layer: the transformers block, with replaced linears and norms.
        sites: the four site transforms by name.
        linears: the seven quantized linears by name.
        scales: smoothing scale of every site, shape ``(width,)``; empty without smoothing.
    """

    layer: nn.Module
    sites: dict[str, SiteTransform]
    linears: dict[str, QuantLinear]
    scales: dict[str, Tensor]

    def round_to_nearest(self) -> None:
        """Fix every weight at the codes nearest to it, whatever its inputs are."""
        for linear in self.linears.values():
            linear.round(Nearest())

    def drop_codes(self) -> None:
        """Forget the weights' codes, once they are stored; their values stay."""
        for linear in self.linears.values():
            linear.rounded = None


def insert_quantizers(
    block: nn.Module,
    recipe: Recipe,
    clips: Mapping[str, Clip],
    smoothed: Smoothed,
) -> QuantizedBlock:
    """Replace linears and norms of a smoothed block by quantized ones; no transform yet.

    Args:
        block: decoder block, changed in place.
        recipe: bits, groups, clip ratios.
        clips: clip factors of every linear by name.
        smoothed: what was done to the sites.

    Raises:
        ValueError: if smoothing made a weight too large for its dtype, naming the linear.
    """
    sites = {}
    for site in SITES:
        quantizer = input_quantizer(recipe)
        first = block.get_submodule(site.linears[0])
        assert isinstance(first, nn.Linear)
        transform = SiteTransform(first.in_features, quantizer).to(first.weight.device)
        if site.name in smoothed.online:
            transform.divide_online(smoothed.online[site.name])
        if site.name in smoothed.means:
            transform.subtract(smoothed.means[site.name])
        sites[site.name] = transform
    linears, biases = {}, take_biases(block, recipe)
    for name in LINEARS:
        linear = block.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        linears[name] = QuantLinear(
            linear.weight.detach().float(),
            None if linear.bias is None else linear.bias.detach(),
            clips[name],
            recipe.formats.weights,
        )
    weights = {f"weights of {name}": one.transformed_weight for name, one in linears.items()}
    require_each_finite(weights, next(block.parameters()).dtype)
    install_modules(block, recipe, sites, linears, biases)
    return QuantizedBlock(block, sites, linears, smoothed.scales)


def take_biases(block: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """Take those biases of Q, K and V from the projections that attention is to add, by operand."""
    attention, biases = block.get_submodule(ATTENTION), {}
    for operand in separable_biases(attention, recipe.attention_bits):
        projection = attention.get_submodule(projection_of(operand))
        biases[operand] = projection.get_parameter("bias").detach()
        projection.register_parameter("bias", None)
    return biases


def install_modules(
    block: nn.Module,
    recipe: Recipe,
    sites: Mapping[str, SiteTransform],
    linears: Mapping[str, QuantLinear | PackedLinear],
    biases: Mapping[str, Tensor],
) -> None:
    """Put sites, linears and the attention quantizer into a decoder block, in place.

    Args:
        block: decoder block, changed in place.
        recipe: bits and clip ratio of Q, K and V.
        sites: the four site transforms by name.
        linears: the seven linears by name, in training or finished.
        biases: those that attention adds, by operand.
    """
    for name, linear in linears.items():
        block.set_submodule(name, linear)
    for site in SITES:
        if site.follows_norm:
            norm = block.get_submodule(site.producer)
            block.set_submodule(site.producer, SiteNorm(norm, sites[site.name]))
        else:
            linears[site.linears[0]].site = sites[site.name]
    attention = block.get_submodule(ATTENTION)
    head_dim = int(attention.head_dim)  # type: ignore[arg-type]
    quantizer = AttentionQuantizer(
        head_dim,
        recipe.formats,
        clip_ratio=recipe.clipping.activation_ratio,
        block_size=recipe.rotation.block_size,
        biases=AttentionBiases(head_dim, biases) if biases else None,
    ).to(next(linears[LINEARS[0]].buffers()).device)
    install_attention_quantizer(attention, quantizer)
    attention.register_forward_pre_hook(quantize_before_cache, with_kwargs=True)


@torch.no_grad()
def calibrate_sites(
    quantized: QuantizedBlock,
    forward: Callable[[], Tensor],
    recipe: Recipe,
    generator: torch.Generator,
    *,
    observe: SiteObserver | None = None,
    draw_base: BaseSource | None = None,
) -> Tensor:
    """Search every site's transform on the calibration tensor that reaches it.

    Args:
        quantized: block after :func:`insert_quantizers`; transforms and weights change in place.
        forward: runs the block on its calibration tensor.
        recipe: says how to search.
        generator: randomness of the searches, on the CPU.
        observe: told what each site saw, for reports.
        draw_base: replaces the random base matrices, in tests.

    Returns:
        The block's output on the calibration tensor.

    Raises:
        ValueError: if what reaches a site is not finite, naming the site.
    """
    kind, named = transform_class(recipe.rotation), {site.name: site for site in SITES}

    def calibrate(name: str, inputs: tuple[Tensor, ...]) -> None:
        site, module = named[name], quantized.sites[name]
        x = module.smooth(inputs[0]).flatten(0, -2).float()
        require_finite(x, f"calibration values of {name}", inputs[0].dtype)
        module.transform = kind.search(x, recipe.rotation, generator, draw_base)
        for linear in site.linears:
            quantized.linears[linear].install(module.transform)
        if observe is not None:
            observe(site, module, x)

    with watching({name: quantized.sites[name] for name in named}, calibrate):
        return forward()


def activation_quantizers(quantized: QuantizedBlock) -> dict[str, ActivationQuantizer]:
    """Whatever quantizes activations in a block: by site, and ``query``, ``key``, ``value``."""
    attention = quantized.layer.get_submodule(ATTENTION).attention_quantizer
    assert isinstance(attention, AttentionQuantizer)
    found = {name: site.quantizer for name, site in quantized.sites.items()}
    return {**found, "query": attention.query, "key": attention.key, "value": attention.value}


def input_quantizer(recipe: Recipe) -> ActivationQuantizer:
    """What quantizes the transformed tokens of a site."""
    form = recipe.formats.activations
    return ActivationQuantizer(form, recipe.activation_ratio(form))
