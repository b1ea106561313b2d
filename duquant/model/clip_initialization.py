"""First clip factors of a block: its quantized inputs decide, linear by linear.

The block runs once over its calibration samples, already rotated and quantized. Every site's output
is what its linears will read for good, so its Gram matrix is collected there, and each linear
searches its rows' ratios with it (:mod:`duquant.ops.clip_search`).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.model.structure import SITES
from duquant.model.surgery import QuantizedBlock
from duquant.nn.clipping import ClipFactors
from duquant.ops.clip_search import search_clip_ratios
from duquant.processes import ALONE, Processes


@torch.no_grad()
def search_clips(
    quantized: QuantizedBlock,
    forward: Callable[[Tensor], Tensor],
    pieces: Iterable[Tensor],
    recipe: Recipe,
    processes: Processes = ALONE,
) -> None:
    """Set the learnable clip factors of every linear, in place.

    Args:
        quantized: block whose transforms are installed.
        forward: runs the block.
        pieces: its inputs ``(batch, tokens, hidden)``, on the block's device; a piece that leads to
            values that are not finite is left out.
        recipe: bits and groups.
        processes: who has the other pieces.
    """
    grams = _collect_grams(quantized, forward, pieces)
    for site in SITES:
        gram = processes.sum(grams.pop(site.name))
        for name in site.linears:
            linear = quantized.linears[name]
            if isinstance(linear.clip, ClipFactors) and gram.any():
                ratios = search_clip_ratios(
                    linear.weight,
                    gram,
                    recipe.weight_bits,
                    symmetric=recipe.symmetric,
                    group_size=recipe.group_size,
                )
                linear.clip.start_at(ratios)


def _collect_grams(
    quantized: QuantizedBlock, forward: Callable[[Tensor], Tensor], pieces: Iterable[Tensor]
) -> dict[str, Tensor]:
    """``Xᵀ X`` of every site's output ``X`` by site name, float32 of shape ``(width, width)``."""
    grams = {
        name: site.online_scale.new_zeros(site.width, site.width, dtype=torch.float32)
        for name, site in quantized.sites.items()
    }

    def collect(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = output.flatten(0, -2).float()
            gram = x.t() @ x
            if torch.isfinite(gram).all():
                grams[name].add_(gram)

        return hook

    handles = [
        quantized.sites[site.name].register_forward_hook(collect(site.name)) for site in SITES
    ]
    try:
        for piece in pieces:
            forward(piece)
    finally:
        for handle in handles:
            handle.remove()
    return grams
