"""Some of the tokens that every site receives, kept while the full-precision block runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from duquant.model.channel_ranges import SiteViews, viewed
from duquant.model.structure import SITES


@contextmanager
def keep_site_tokens(
    block: nn.Module, stride: int, views: SiteViews | None = None
) -> Iterator[dict[str, list[Tensor]]]:
    """Keep every so many-th token of every site while the full-precision ``block`` runs.

    Args:
        block: a decoder block.
        stride: of all tokens of a batch the first, and every ``stride``-th behind it.
        views: as of :func:`~duquant.model.channel_ranges.observe_sites`.

    Yields:
        Tokens ``(tokens, width)`` of every batch by site, filled as data passes.
    """
    kept: dict[str, list[Tensor]] = {site.name: [] for site in SITES}

    def keeper(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tokens = inputs[0].detach().flatten(0, -2)[::stride]
            kept[name].append(viewed(views, name, tokens).clone())

        return keep

    handles = [
        block.get_submodule(site.linears[0]).register_forward_pre_hook(keeper(site.name))
        for site in SITES
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def stride_for(num_tokens: int, limit: int) -> int:
    """The stride that keeps about ``limit`` of ``num_tokens`` tokens."""
    return max(1, -(-num_tokens // limit))


def joined(kept: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """One tensor ``(tokens, width)`` a site; sites that saw nothing are left out."""
    return {name: torch.cat(parts) for name, parts in kept.items() if parts}
