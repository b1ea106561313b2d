"""``XᵀX`` and ``Σx`` of every site: what rounding and clipping need to know of a site's tokens.

With the tokens ``X`` that a linear reads, a change ``d`` of one of its rows costs its output ``‖X
dᵀ‖² = d (XᵀX) dᵀ``: the Gram matrix stands for all tokens, at ``width²`` floats. A site's linears
share it. It is collected while a block runs, from what passes a module of every site: behind the
site of a quantized block, or before the first linear of a full-precision one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from duquant.processes import ALONE, Processes

GRAM_COLUMNS = 256
"""Columns of a block of the product: half of a symmetric matrix need not be computed."""


@dataclass
class SiteGram:
    """Sums over a site's tokens.

    Attributes:
        gram: ``Σ xᵀx``, float32 ``(width, width)``.
        total: ``Σ x``, float32 ``(width,)``.
        tokens: how many tokens.
    """

    gram: Tensor
    total: Tensor
    tokens: int = 0

    def add(self, x: Tensor) -> None:
        """Add tokens ``(..., width)``; those of a call that is not finite are left out."""
        x = x.flatten(0, -2).float()
        gram = _gram(x)
        if torch.isfinite(gram).all():
            self.gram += gram
            self.total += x.sum(dim=0)
            self.tokens += len(x)


def _gram(x: Tensor) -> Tensor:
    """``xᵀx`` of ``(tokens, width)``: blocks on and above the diagonal, mirrored below it."""
    width = x.shape[1]
    gram = x.new_empty(width, width)
    for start in range(0, width, GRAM_COLUMNS):
        stop = min(start + GRAM_COLUMNS, width)
        product = x[:, start:stop].t() @ x[:, start:]
        gram[start:stop, start:] = product
        gram[stop:, start:stop] = product[:, stop - start :].t()
    return gram


class _EverySiteHasPassedError(Exception):
    """Stops a block whose later modules nobody wants to see."""


@torch.no_grad()
def collect_site_grams(
    modules: Mapping[str, nn.Module],
    forward: Callable[[Tensor], Tensor],
    chunks: Iterable[Tensor],
    processes: Processes = ALONE,
    *,
    of_inputs: bool = False,
) -> dict[str, SiteGram]:
    """Run a block over its calibration samples and sum up what passes some of its modules.

    Args:
        modules: by site, in the order that data meets them; the block is not run behind the last.
        forward: runs the block.
        chunks: its inputs ``(batch, tokens, hidden)``, on the block's device.
        processes: who has the other chunks.
        of_inputs: sum up what enters the modules, not what leaves them.

    Returns:
        The sums by site, over all processes.
    """
    grams: dict[str, SiteGram] = {}
    last = list(modules)[-1]

    def add(name: str, x: Tensor) -> None:
        width = x.shape[-1]
        if name not in grams:
            new = x.new_zeros(width, width, dtype=torch.float32)
            grams[name] = SiteGram(new, new[0].clone())
        grams[name].add(x)
        if name == last:
            raise _EverySiteHasPassedError

    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs[0]))
        if of_inputs
        else module.register_forward_hook(lambda _, __, output, name=name: add(name, output))
        for name, module in modules.items()
    ]
    try:
        for chunk in chunks:
            try:
                forward(chunk)
            except _EverySiteHasPassedError:
                continue
    finally:
        for handle in handles:
            handle.remove()
    for each in grams.values():
        each.gram, each.total = processes.sum(each.gram), processes.sum(each.total)
        each.tokens = int(processes.sum(torch.tensor(each.tokens, device="cpu")))
    return grams
