"""Smoothing a decoder block: observe its activations, scale its channels, fold the scales away.

The formula is in :mod:`duquant.ops.smoothing`; this is where each scale goes. The site's linears
are multiplied by it, and the module that produces the site's input is divided by it: the norm
before the attention or the MLP, ``v_proj`` before ``o_proj``, ``up_proj`` before ``down_proj``
(table in :mod:`duquant.model.structure`). Where folding is impossible the site divides online: with
a scale per query channel, and behind norms that do not simply multiply by their weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.model.channel_ranges import ChannelRange
from duquant.model.structure import ATTENTION, LINEARS, SITES, Site
from duquant.ops.smoothing import (
    first_weight_peak,
    repeat_for_heads,
    share_within_groups,
    smoothing_scale,
    weight_peak,
)


@dataclass(frozen=True)
class Smoothed:
    """What was done to a block's sites, by site name; every tensor ``(width,)`` in float32.

    Attributes:
        scales: of every site, if it was smoothed.
        online: those that a site has to divide by, as nothing before it could take them.
        means: what a site subtracts behind the division, if the recipe says so.
    """

    scales: dict[str, Tensor] = field(default_factory=dict)
    online: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)


def smooth_block(block: nn.Module, ranges: Mapping[str, ChannelRange], recipe: Recipe) -> Smoothed:
    """Fold smoothing scales and the products of means into a full-precision block, in place.

    Args:
        block: a decoder block with real weights.
        ranges: what the channels of every site hold, from
            :func:`duquant.model.channel_ranges.observe_sites`.
        recipe: says whether and how strongly to smooth, and whether means are subtracted.
    """
    centres = recipe.smoothing.subtract_mean
    scales, online = {}, {}
    if recipe.smoothing.enabled:
        for site in SITES:
            peak = ranges[site.name].peak(around_mean=centres)
            scales[site.name] = _site_scale(block, site, peak, recipe)
        for site in SITES:
            scale = scales[site.name]
            for name in site.linears:
                weight = _weight(block, name)
                weight.copy_((weight.float() * scale).to(weight.dtype))
            if not _fold_into_producer(block, site, scale):
                online[site.name] = scale
    means = {}
    if centres:
        give_biases(block)
        for site in SITES:
            mean = ranges[site.name].mean
            means[site.name] = mean / scales[site.name] if site.name in scales else mean
            for name in site.linears:
                _add_to_bias(block.get_submodule(name), means[site.name])
    return Smoothed(scales, online, means)


def give_biases(block: nn.Module) -> None:
    """Give every linear a bias, where it has none: zeros, in its weight's dtype and place."""
    for name in LINEARS:
        linear = block.get_submodule(name)
        if getattr(linear, "bias", None) is None:
            weight = linear.get_parameter("weight")
            bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=False)
            linear.register_parameter("bias", bias)


def _add_to_bias(linear: nn.Module, mean: Tensor) -> None:
    """``W (x - m) + (b + W m)`` is ``W x + b``."""
    weight, bias = linear.get_parameter("weight"), linear.get_parameter("bias")
    moved = weight.double() @ mean.double() + bias.double()
    bias.copy_(moved.to(bias.dtype))


def _site_scale(block: nn.Module, site: Site, peak: Tensor, recipe: Recipe) -> Tensor:
    find_peak = weight_peak if recipe.smoothing.weights == "all" else first_weight_peak
    weights = find_peak([_weight(block, name) for name in site.linears]).float()
    producer_width = _weight(block, site.producer).shape[0]
    if producer_width == peak.numel() or recipe.smoothing.attention_output == "query_channel":
        return smoothing_scale(peak, weights, recipe.alpha)
    heads = {"num_groups": producer_width // _head_dim(block), "head_dim": _head_dim(block)}
    shared = smoothing_scale(
        share_within_groups(peak, **heads), share_within_groups(weights, **heads), recipe.alpha
    )
    num_heads = peak.numel() // _head_dim(block)
    return repeat_for_heads(shared, num_heads=num_heads, head_dim=_head_dim(block))


def _fold_into_producer(block: nn.Module, site: Site, scale: Tensor) -> bool:
    """Divide the producer's output channels by ``scale``; ``False`` if that cannot be done."""
    producer = block.get_submodule(site.producer)
    weight = _weight(block, site.producer)
    if weight.shape[0] != scale.numel():
        head_dim = _head_dim(block)
        grouped = scale.view(weight.shape[0] // head_dim, -1, head_dim)
        if not torch.equal(grouped, grouped[:, :1].expand_as(grouped)):
            return False
        scale = grouped[:, 0].flatten()
    elif site.follows_norm and not _scales_with_weight(producer, scale.numel()):
        return False
    for parameter in producer.parameters(recurse=False):
        column = scale.view(-1, *[1] * (parameter.dim() - 1))
        parameter.copy_((parameter.float() / column).to(parameter.dtype))
    return True


def _scales_with_weight(norm: nn.Module, width: int) -> bool:
    """Whether doubling the norm's weight doubles its output (not so with ``1 + weight``)."""
    weight = norm.get_parameter("weight")
    probe = torch.linspace(-1, 1, width, device=weight.device, dtype=weight.dtype)
    before = norm(probe)
    weight.mul_(2)
    after = norm(probe)
    weight.div_(2)
    return torch.allclose(after, 2 * before)


def _weight(block: nn.Module, name: str) -> nn.Parameter:
    return block.get_submodule(name).get_parameter("weight")


def _head_dim(block: nn.Module) -> int:
    return int(block.get_submodule(ATTENTION).head_dim)  # type: ignore[arg-type]
