"""Massive tokens: the few tokens that are many times larger than the others of their site.

Language models put values of hundreds or thousands on a few tokens, often the first of a text or a
line break, always in the same channels ("Massive Activations in Large Language Models", Sun et al.,
2024). A token's magnitude is its largest absolute value in the full-precision model. A token is
massive if that is at least :data:`MASSIVE` times the median over all tokens of its site.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from duquant.model.channel_ranges import first_linears
from duquant.model.watched_inputs import watching
from duquant.processes import Processes

MASSIVE = 10.0
MOST_NAMED = 3
"""Different tokens that are named of a site."""


class NamedToken(TypedDict):
    """A token of the vocabulary that is massive somewhere.

    Attributes:
        token_id: its number.
        text: what it stands for.
        magnitude: the largest that it reaches.
        position: where in its calibration window that is, from 0.
    """

    token_id: int
    text: str
    magnitude: float
    position: int


class MassiveSite(TypedDict):
    """The massive tokens of a site.

    Attributes:
        site: the site's name.
        magnitude: that of the largest token.
        typical: median over all tokens.
        channel: where the largest token has its largest value.
        count: how many tokens are massive.
        at_start: how many of them begin a calibration window.
        tokens: the largest, each token of the vocabulary once.
    """

    site: str
    magnitude: float
    typical: float
    channel: int
    count: int
    at_start: int
    tokens: list[NamedToken]


@dataclass
class TokenPeaks:
    """Magnitudes of a site's tokens.

    Attributes:
        magnitudes: float32 ``(samples, tokens)``.
        channel: of the largest value of all, a scalar.
    """

    magnitudes: Tensor
    channel: Tensor

    @classmethod
    def of(cls, hidden: Tensor) -> "TokenPeaks":
        """Of a site's input ``(samples, tokens, width)``, on its device."""
        magnitudes = torch.maximum(hidden.amax(dim=-1), -hidden.amin(dim=-1))
        largest = hidden.flatten(0, -2).index_select(0, magnitudes.argmax().view(1))
        return cls(magnitudes.float(), largest.abs().argmax())

    def cpu(self) -> "TokenPeaks":
        """In the host's memory."""
        return TokenPeaks(self.magnitudes.cpu(), self.channel.cpu())

    def join(self, other: "TokenPeaks") -> "TokenPeaks":
        """Of these samples and those of ``other`` behind them."""
        is_larger = other.magnitudes.max() > self.magnitudes.max()
        both = torch.cat([self.magnitudes, other.magnitudes])
        return TokenPeaks(both, torch.where(is_larger, other.channel, self.channel))

    def of_all(self, processes: Processes) -> "TokenPeaks":
        """Of the samples of all processes, in their order."""
        magnitudes = torch.stack(processes.gather(self.magnitudes), dim=1)
        channels = processes.gather(self.channel)
        largest = int(magnitudes.amax(dim=(0, 2)).argmax())
        return TokenPeaks(magnitudes.flatten(0, 1), channels[largest])


@contextmanager
def observe_tokens(block: nn.Module) -> Iterator[dict[str, TokenPeaks]]:
    """Collect the magnitudes of every site's tokens while the full-precision ``block`` runs.

    Yields:
        A mapping from site names, filled as samples pass; in the end on the CPU.
    """
    seen: dict[str, TokenPeaks] = {}

    def look(name: str, inputs: tuple[Tensor, ...]) -> None:
        now = TokenPeaks.of(inputs[0].detach())
        seen[name] = seen[name].join(now) if name in seen else now

    with watching(first_linears(block), look):
        yield seen
    seen |= {name: peaks.cpu() for name, peaks in seen.items()}


def name_massive_tokens(
    peaks: Mapping[str, TokenPeaks], windows: Tensor, text_of: Callable[[int], str]
) -> list[MassiveSite]:
    """Say which tokens are massive, site by site; sites without any are left out.

    Args:
        peaks: of the sites, over all samples.
        windows: token ids ``(samples, tokens)``.
        text_of: what a token id stands for.
    """
    found = []
    for site, peak in peaks.items():
        magnitudes = peak.magnitudes.flatten()
        typical = float(magnitudes.median())
        is_massive = (magnitudes >= MASSIVE * typical) & (magnitudes > 0)
        places = is_massive.nonzero().flatten()
        if not len(places):
            continue
        order = magnitudes[places].argsort(descending=True, stable=True)
        places = places[order]
        found.append(
            MassiveSite(
                site=site,
                magnitude=float(magnitudes[places[0]]),
                typical=typical,
                channel=int(peak.channel),
                count=len(places),
                at_start=int((places % windows.shape[1] == 0).sum()),
                tokens=_largest(places, magnitudes, windows, text_of),
            )
        )
    return found


def _largest(
    places: Tensor, magnitudes: Tensor, windows: Tensor, text_of: Callable[[int], str]
) -> list[NamedToken]:
    """The first :data:`MOST_NAMED` different tokens of ``places``, which descend."""
    first: dict[int, int] = {}
    for place in places.tolist():
        first.setdefault(int(windows.flatten()[place]), place)
        if len(first) == MOST_NAMED:
            break
    return [
        NamedToken(
            token_id=token,
            text=text_of(token),
            magnitude=float(magnitudes[place]),
            position=place % windows.shape[1],
        )
        for token, place in first.items()
    ]
