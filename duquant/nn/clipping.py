"""Clip factors of a weight: two numbers per row that shrink its range.

``ClipFactors`` learns them (LWC: logits that pass through a sigmoid, so a range can only shrink;
they start at 4.0, 98 % of the range, or where a search puts them); ``FixedClip`` holds one ratio
for all rows.
Both return ``(high, low)`` ready for :func:`duquant.ops.affine.affine_grid`.
"""

import torch
from torch import Tensor, nn

INITIAL_LOGIT = 4.0


class ClipFactors(nn.Module):
    """Learnable clip factors, the only parameters that DuQuant trains.

    Args:
        rows: rows of the weight that have a scale of their own (output channels × groups).
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.high_logit = nn.Parameter(torch.full((rows, 1), INITIAL_LOGIT))
        self.low_logit = nn.Parameter(torch.full((rows, 1), INITIAL_LOGIT))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Factors on each row's maximum and minimum, both of shape ``(rows, 1)``."""
        return self.high_logit.sigmoid(), self.low_logit.sigmoid()

    @torch.no_grad()
    def start_at(self, ratios: Tensor) -> None:
        """Begin with one ratio for both ends of each row, between 0 and 1, shape ``(rows, 1)``."""
        for logit in (self.high_logit, self.low_logit):
            logit.copy_(ratios.logit())


class FixedClip(nn.Module):
    """One clip ratio for all rows.

    Args:
        ratio: factor on maximum and minimum.
    """

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self) -> tuple[float, float]:
        """The ratio, twice."""
        return self.ratio, self.ratio

    def extra_repr(self) -> str:
        """Show the ratio."""
        return f"ratio={self.ratio}"
