"""What the channels of every site hold, seen while the full-precision block runs: range and mean.

The mean is that of tokens brought to length one, times their mean length: a massive token (in
``down_proj``'s input a thousand times longer than others) counts as much as any other.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from duquant.model.structure import SITES
from duquant.model.watched_inputs import watching
from duquant.ops.finite import require_each_finite
from duquant.processes import Processes

SiteViews = Mapping[str, Callable[[Tensor], Tensor]]
"""By site, a change of its tokens ``(tokens, width)``; sites that are not named keep theirs."""


@dataclass
class ChannelRange:
    """Sums over a site's tokens, each of shape ``(width,)`` unless said otherwise.

    Attributes:
        high: largest value of every channel.
        low: smallest.
        total: ``Σ x / ‖x‖²``, float64.
        weight: ``Σ 1 / ‖x‖²``, float64, a scalar.
    """

    high: Tensor
    low: Tensor
    total: Tensor
    weight: Tensor

    @classmethod
    def of(cls, tokens: Tensor, *, means: bool = False) -> "ChannelRange":
        """Of tokens ``(tokens, width)``; sums for their mean only if it is wanted."""
        high, low = tokens.amax(dim=0).float(), tokens.amin(dim=0).float()
        total = high.new_zeros(high.shape, dtype=torch.float64)
        if not means:
            return cls(high, low, total, total.new_zeros(()))
        wide = tokens.double()
        squares = torch.linalg.vector_norm(wide, dim=-1).square()
        weights = torch.where(squares > 0, 1 / squares, 0)
        return cls(high, low, weights @ wide, weights.sum())

    def join(self, other: "ChannelRange") -> "ChannelRange":
        """Of the tokens of both."""
        return ChannelRange(
            torch.maximum(self.high, other.high),
            torch.minimum(self.low, other.low),
            self.total + other.total,
            self.weight + other.weight,
        )

    def of_all(self, processes: Processes) -> "ChannelRange":
        """Of the tokens of all processes."""
        return ChannelRange(
            processes.max(self.high),
            -processes.max(-self.low),
            processes.sum(self.total),
            processes.sum(self.weight),
        )

    @property
    def mean(self) -> Tensor:
        """Mean of every channel, every token weighed by ``1 / ‖x‖²``; 0 where all tokens are."""
        mean = torch.where(self.weight > 0, self.total / self.weight, 0)
        return mean.float()

    def peak(self, *, around_mean: bool = False) -> Tensor:
        """``max|x|`` of every channel, or the farthest from its mean."""
        middle = self.mean if around_mean else torch.zeros_like(self.high)
        return torch.maximum(self.high - middle, middle - self.low)


@contextmanager
def observe_sites(
    block: nn.Module, *, means: bool = False, views: SiteViews | None = None
) -> Iterator[dict[str, ChannelRange]]:
    """Collect the range of every site's channels while the full-precision ``block`` runs.

    Args:
        block: a decoder block.
        means: collect what their means need, too.
        views: what becomes of a site's tokens before they are looked at, by site.

    Yields:
        A mapping from site names, filled as data passes.

    Raises:
        ValueError: in the end, if some data was not finite, naming the site.
    """
    seen: dict[str, ChannelRange] = {}

    def look(name: str, inputs: tuple[Tensor, ...]) -> None:
        tokens = viewed(views, name, inputs[0].detach().flatten(0, -2))
        now = ChannelRange.of(tokens, means=means)
        seen[name] = seen[name].join(now) if name in seen else now

    def require_finite_channels() -> None:
        peaks = {f"channels of {name}": now.peak for name, now in seen.items()}
        require_each_finite(peaks, next(block.parameters()).dtype)

    with watching(first_linears(block), look):
        try:
            yield seen
        except ValueError:  # the block's output was refused; this says where it begins
            require_finite_channels()
            raise
        require_finite_channels()


def first_linears(block: nn.Module) -> dict[str, nn.Module]:
    """The first linear that reads each site: what enters it is what the site will receive."""
    return {site.name: block.get_submodule(site.linears[0]) for site in SITES}


def viewed(views: SiteViews | None, site: str, tokens: Tensor) -> Tensor:
    """Tokens as a site will see them."""
    return views[site](tokens) if views and site in views else tokens
