"""What a packed linear asks first when it is given integers."""

from typing import Protocol

from torch import Tensor, nn


class SharedProduct(Protocol):
    """Multiplies several linears at once (:mod:`duquant.nn.joined_linears` makes them)."""

    @property
    def is_made(self) -> bool:
        """Whether a weight for all of them lies in memory."""

    def output(self, linear: nn.Module, tokens: Tensor) -> Tensor | None:
        """Outputs of one of them, ``(..., out)``, or ``None`` if it has to multiply itself.

        Args:
            linear: whose outputs.
            tokens: encoded integers, ``uint8 (..., in + 6)``.
        """

    def drop(self) -> None:
        """Forget what was made of the weights: one moves, or is about to hold other numbers."""
