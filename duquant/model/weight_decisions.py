"""What a block's Gram matrices decide about its weights: clip ratios before training, codes after.

Rounding takes two passes over the samples. The first, which ends in front of Q, K and V, collects
their Gram and costs little; the second collects those of all other sites, behind Q, K and V that
are rounded already and other linears at the codes nearest to their weights. A pass for every site,
each behind linears that are all rounded for good, was no better where it was measured
(``tests/benchmarks/README.md``).
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from duquant.model.site_grams import SiteGram, collect_site_grams
from duquant.model.structure import SITES
from duquant.model.surgery import QuantizedBlock
from duquant.nn.clipping import ClipFactors, FixedClip
from duquant.nn.linear import round_linears
from duquant.ops.finite import require_each_finite
from duquant.processes import ALONE, Processes
from duquant.rounding.clip_ratios import search_clip_ratios
from duquant.rounding.weight_rounding import WeightRounding

Chunks = Callable[[], Iterable[Tensor]]
"""Gives a block's inputs ``(batch, tokens, hidden)``, on its device, as often as it is asked."""


@torch.no_grad()
def search_clips(quantized: QuantizedBlock, grams: Mapping[str, SiteGram]) -> None:
    """Set the clip factors of every linear to what costs its output least, in place.

    Learned factors start there; of others, whose format cannot learn, it is the end.

    Args:
        quantized: block whose transforms are installed.
        grams: of its sites.
    """
    for site in SITES:
        gram = grams[site.name].gram
        for linear in (quantized.linears[name] for name in site.linears):
            if not gram.any() or not linear.is_quantized:
                continue
            weight = linear.transformed_weight()
            if isinstance(linear.clip, ClipFactors):
                linear.clip.start_at(search_clip_ratios(weight, gram, linear.form))
            else:
                linear.clip = FixedClip(search_clip_ratios(weight, gram, linear.form))


@torch.no_grad()
def round_weights(
    quantized: QuantizedBlock,
    rounding: WeightRounding,
    forward: Callable[[Tensor], Tensor],
    chunks: Chunks,
    processes: Processes = ALONE,
) -> str:
    """Choose every weight's codes for good, in place.

    Args:
        quantized: block whose transforms and clip factors are final.
        rounding: how.
        forward: runs the block.
        chunks: its quantized stream.
        processes: who has the other chunks.

    Returns:
        The largest damping that was more than asked for, in words; empty if none was.

    Raises:
        ValueError: if a weight is not finite, naming the linear.
    """
    dtype = next(quantized.layer.parameters()).dtype
    linears = quantized.linears.items()
    require_each_finite(
        {f"weights of {name}": one.transformed_weight for name, one in linears}, dtype
    )
    needs_gram = rounding.needs_gram and any(
        linear.is_quantized for linear in quantized.linears.values()
    )
    for sites in (SITES[:1], SITES[1:]):
        grams: dict[str, SiteGram] = {}
        if needs_gram:
            modules = {site.name: quantized.sites[site.name] for site in sites}
            grams = collect_site_grams(modules, forward, chunks(), processes)
        for site in sites:
            gram = grams.pop(site.name).gram if grams else None
            round_linears([quantized.linears[name] for name in site.linears], rounding, gram)
    return _raised_damping(quantized)


def _raised_damping(quantized: QuantizedBlock) -> str:
    """Where the Gram matrix needed more damping than the recipe's: the worst linear, in words."""
    rounded = {name: linear.rounded for name, linear in quantized.linears.items()}
    raised = {name: one.damping for name, one in rounded.items() if one and one.is_raised}
    if not raised:
        return ""
    worst = max(raised, key=raised.__getitem__)
    return f"damping raised to {raised[worst]:g} for {worst}, the most of {len(raised)} linears"
