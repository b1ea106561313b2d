"""Round to nearest: every entry to the number of its grid that is closest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from duquant.formats.number_format import NO_CLIP, Clip, NumberFormat, split_rows
from duquant.rounding.weight_rounding import Rounded


@dataclass(frozen=True)
class Nearest:
    """The least error of every entry by itself; it has no options."""

    name: ClassVar[str] = "nearest"
    needs_gram: ClassVar[bool] = False

    @torch.no_grad()
    def __call__(
        self, weight: Tensor, form: NumberFormat, clip: Clip = NO_CLIP, gram: Tensor | None = None
    ) -> Rounded:
        """Codes and grid of a weight ``(out, in)``; the Gram matrix is not looked at."""
        rows = split_rows(weight, form.group_size)
        grid = form.grid(rows, clip)
        return Rounded(form.codes(rows, grid).view(weight.shape), grid)

    def together(
        self,
        weights: Sequence[Tensor],
        form: NumberFormat,
        clips: Sequence[Clip],
        gram: Tensor | None = None,
    ) -> list[Rounded]:
        """One after the other."""
        return [self(weight, form, clip) for weight, clip in zip(weights, clips, strict=True)]
