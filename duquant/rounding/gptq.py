"""GPTQ: round column after column, and let later columns make good what earlier ones spoilt.

The error of a linear's output weighs errors of its weight by the Gram matrix of the inputs. Where
inputs are correlated the rounding error of one column can be compensated by another that is not
rounded yet (Frantar et al. 2022; the formula is in :mod:`duquant.ops.error_feedback`).

The grids are chosen from the original weight, before any column moves (*static groups*): they do
not depend on the order of the columns, clip factors mean what they mean elsewhere, and any number
format will do. Columns are taken in blocks: inside a block one by one, and what a finished block
feeds to the rest is one matrix product. Weights that read the same inputs share their Gram matrix,
so they go through the columns side by side, in one loop.

The result is never worse than rounding to nearest in the Gram matrix's norm: both are computed, and
as the output error is a sum over rows, every row keeps the better one (up to the rounding of
float32).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from duquant.formats.number_format import NO_CLIP, Clip, Grid, NumberFormat, num_groups, split_rows
from duquant.ops.error_feedback import LARGEST_DAMPING, error_feedback
from duquant.ops.precision import exact_products
from duquant.rounding.nearest import Nearest
from duquant.rounding.weight_rounding import Rounded

Order = Literal["natural", "diagonal"]


@dataclass(frozen=True)
class GPTQ:
    """Rounding with error feedback.

    Args:
        damping: share of the Gram matrix's mean diagonal added to its diagonal, 0 or more; raised
            where the matrix cannot be factored without.
        block_columns: columns of a block, at least 1; decides speed alone.
        order: ``natural``, or by falling ``diagonal`` of the Gram matrix ("activation order"):
            inputs with most energy are rounded while most columns are left to compensate.
    """

    name: ClassVar[str] = "gptq"
    needs_gram: ClassVar[bool] = True

    damping: float = 0.01
    block_columns: int = 64
    order: Order = "diagonal"

    def __post_init__(self) -> None:
        """Check the numbers and the choice."""
        if not 0 <= self.damping <= LARGEST_DAMPING:
            raise ValueError(f"damping is {self.damping}; it must be 0 to {LARGEST_DAMPING:g}")
        if self.block_columns < 1:
            raise ValueError(f"block_columns is {self.block_columns}; it must be at least 1")
        if self.order not in get_args(Order):
            raise ValueError(
                f"order is {self.order!r}; it must be one of {', '.join(get_args(Order))}"
            )

    def __call__(
        self, weight: Tensor, form: NumberFormat, clip: Clip = NO_CLIP, gram: Tensor | None = None
    ) -> Rounded:
        """Codes and grid of a weight ``(out, in)``, and the damping that was needed."""
        return self.together([weight], form, [clip], gram)[0]

    @torch.no_grad()
    def together(
        self,
        weights: Sequence[Tensor],
        form: NumberFormat,
        clips: Sequence[Clip],
        gram: Tensor | None = None,
    ) -> list[Rounded]:
        """Of several weights: their rows go through the columns side by side."""
        assert gram is not None, "gptq needs the Gram matrix of the linear's inputs"
        each = Nearest().together(weights, form, clips)
        nearest = Rounded(
            torch.cat([rounded.codes for rounded in each]),
            tuple(torch.cat(parts) for parts in zip(*(one.grid for one in each), strict=True)),
        )
        weight = torch.cat(list(weights))
        gram = gram.to(weight.device)
        columns = torch.arange(weight.shape[1], device=gram.device)
        if self.order == "diagonal":
            columns = gram.diagonal().argsort(descending=True, stable=True)
        with exact_products():
            arriving, damping = error_feedback(gram, self.damping, columns)
            order = columns.tolist()
            codes = _round_in_order(weight, form, nearest, arriving, order, self.block_columns)
            del weight
            rows = [len(one) for one in weights]
            return [
                Rounded(
                    _cheaper(new, old, weight, form, gram),
                    old.grid,
                    damping,
                    damping > self.damping,
                )
                for new, old, weight in zip(codes.split(rows), each, weights, strict=True)
            ]


def _round_in_order(
    weight: Tensor,
    form: NumberFormat,
    nearest: Rounded,
    arriving: Tensor,
    order: list[int],
    block_columns: int,
) -> Tensor:
    """Codes ``(out, in)``; ``arriving`` is what :func:`error_feedback` says of that order.

    Everything lies transposed, ``(in, out)`` and in order, so that a column is contiguous.
    """
    grids = _grids_by_group(nearest.grid, weight.shape, form)
    group_size = form.group_size or weight.shape[1]
    columns = weight.t()[order]
    errors, codes = torch.zeros_like(columns), torch.empty_like(nearest.codes.t()[order])
    for start in range(0, len(order), block_columns):
        stop = min(start + block_columns, len(order))
        wanted = columns[start:stop] + arriving[start:stop, :start] @ errors[:start]
        for k in range(start, stop):
            column = torch.addmv(wanted[k - start], errors[start:k].t(), arriving[k, start:k])
            grid = grids[order[k] // group_size]
            code = form.codes(column.unsqueeze(-1), grid)
            torch.sub(columns[k], form.values(code, grid).squeeze(-1), out=errors[k])
            codes[k] = code.squeeze(-1)
    in_place = torch.empty_like(codes)
    in_place[order] = codes
    return in_place.t().contiguous()


def _grids_by_group(grid: Grid, shape: torch.Size, form: NumberFormat) -> list[Grid]:
    """The grid of each group of all rows, its parts ``(out, 1)``."""
    groups = num_groups(shape[1], form.group_size)
    parts = [part.reshape(shape[0], groups, 1) for part in grid]
    return [tuple(part[:, group].contiguous() for part in parts) for group in range(groups)]


def _cheaper(
    codes: Tensor, nearest: Rounded, weight: Tensor, form: NumberFormat, gram: Tensor
) -> Tensor:
    """Rows of ``codes`` that have a smaller ``e G eᵀ`` than rounding to nearest; else its rows.

    ``e G eᵀ − f G fᵀ = (e − f) G (e + f)ᵀ``, as ``G`` is symmetric.
    """
    values, nearest_values = (
        form.values(split_rows(given, form.group_size), nearest.grid).view(weight.shape)
        for given in (codes, nearest.codes)
    )
    difference = nearest_values - values
    total = 2 * weight - values - nearest_values
    change = ((difference @ gram.to(weight.dtype)) * total).sum(dim=-1, keepdim=True)
    return torch.where(change < 0, codes, nearest.codes)
