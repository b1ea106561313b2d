"""Some of the tokens that every site receives, kept while the full-precision block runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from duquant.model.channel_ranges import SiteViews, first_linears, viewed
from duquant.model.structure import SITES
from duquant.model.watched_inputs import watching


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

    def look(name: str, inputs: tuple[Tensor, ...]) -> None:
        tokens = inputs[0].detach().flatten(0, -2)[::stride]
        kept[name].append(viewed(views, name, tokens).clone())

    with watching(first_linears(block), look):
        yield kept


def stride_for(num_tokens: int, limit: int) -> int:
    """The stride that keeps about ``limit`` of ``num_tokens`` tokens."""
    return max(1, -(-num_tokens // limit))


def joined(kept: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """One tensor ``(tokens, width)`` a site; sites that saw nothing are left out."""
    return {name: torch.cat(parts) for name, parts in kept.items() if parts}
