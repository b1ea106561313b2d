"""Smoothing a decoder block: observe its activations, scale its channels, fold the scales away.

The formula is in :mod:`duquant.ops.smoothing`; this is where each scale goes. The site's linears
are multiplied by it, and the module that produces the site's input is divided by it: the norm
before the attention or the MLP, ``v_proj`` before ``o_proj``, ``up_proj`` before ``down_proj``
(table in :mod:`duquant.model.structure`). Where folding is impossible the site divides online: with
a scale per query channel, and behind norms that do not simply multiply by their weight.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.model.structure import ATTENTION, SITES, Site
from duquant.ops.finite import require_finite
from duquant.ops.smoothing import (
    first_weight_peak,
    repeat_for_heads,
    share_within_groups,
    smoothing_scale,
    weight_peak,
)


@contextmanager
def observe_peaks(block: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect ``max|x|`` per channel of every site while the full-precision ``block`` runs.

    Yields:
        A mapping from site names to float32 tensors of shape ``(width,)``, filled as data passes.

    Raises:
        ValueError: while data passes, if some of it is not finite, naming the site.
    """
    peaks: dict[str, Tensor] = {}

    def observer(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def observe(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            peak = inputs[0].detach().abs().flatten(0, -2).amax(dim=0).float()
            require_finite(peak, f"channels of {name}", inputs[0].dtype)
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

        return observe

    handles = [
        block.get_submodule(site.linears[0]).register_forward_pre_hook(observer(site.name))
        for site in SITES
    ]
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


def smooth_block(
    block: nn.Module, peaks: Mapping[str, Tensor], recipe: Recipe
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Fold smoothing scales into the weights of a full-precision block, in place.

    Args:
        block: a decoder block with real weights.
        peaks: ``max|x|`` per channel of every site, from :func:`observe_peaks`.
        recipe: says whether and how strongly to smooth.

    Returns:
        The scale of every site and, of those, the ones that have to be divided online.
    """
    if not recipe.smoothing.enabled:
        return {}, {}
    scales = {site.name: _site_scale(block, site, peaks[site.name], recipe) for site in SITES}
    online = {}
    for site in SITES:
        scale = scales[site.name]
        for name in site.linears:
            weight = _weight(block, name)
            weight.copy_((weight.float() * scale).to(weight.dtype))
        if not _fold_into_producer(block, site, scale):
            online[site.name] = scale
    return scales, online


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
