"""Clip factors of a weight: two numbers per row that shrink its range.

``ClipFactors`` learns them (LWC: logits that pass through a sigmoid, so a range can only shrink;
they start at 4.0, 98 % of the range, or where a search puts them); ``FixedClip`` holds one ratio
for all rows, or one found for each.
Both return a :class:`duquant.formats.number_format.Clip`, which every number format takes.
"""

import torch
from torch import Tensor, nn

from duquant.formats.number_format import Clip

INITIAL_LOGIT = 4.0


class ClipFactors(nn.Module):
    """Learnable clip factors (LWC).

    Args:
        rows: rows of the weight that have a scale of their own (output channels × groups).
        moves_zero_point: let them learn through the zero points too.
        start: their logit.
    """

    def __init__(
        self, rows: int, *, moves_zero_point: bool = False, start: float = INITIAL_LOGIT
    ) -> None:
        super().__init__()
        self.moves_zero_point = moves_zero_point
        self.start = start
        self.high_logit = nn.Parameter(
            torch.full((rows, 1), start, dtype=torch.float32, device="cpu")
        )
        self.low_logit = nn.Parameter(
            torch.full((rows, 1), start, dtype=torch.float32, device="cpu")
        )

    def forward(self) -> Clip:
        """Factors on each row's maximum and minimum, both of shape ``(rows, 1)``."""
        return Clip(self.high_logit.sigmoid(), self.low_logit.sigmoid(), self.moves_zero_point)

    @torch.no_grad()
    def start_at(self, ratios: Tensor) -> None:
        """Begin with one ratio for both ends of each row, between 0 and 1, shape ``(rows, 1)``."""
        for logit in (self.high_logit, self.low_logit):
            logit.copy_(ratios.logit())

    @torch.no_grad()
    def start_anew(self) -> None:
        """Begin at the start, by default with 98 % of every range, as the authors do."""
        for logit in (self.high_logit, self.low_logit):
            logit.fill_(self.start)


class FixedClip(nn.Module):
    """A clip ratio that is not learned.

    Args:
        ratio: factor on maximum and minimum: one number, or ``(rows, 1)``.
    """

    def __init__(self, ratio: float | Tensor) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self) -> Clip:
        """The ratio, twice."""
        return Clip(self.ratio, self.ratio)

    def extra_repr(self) -> str:
        """Show the ratio."""
        return f"ratio={self.ratio}" if isinstance(self.ratio, float) else "ratios by row"
