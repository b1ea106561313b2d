"""How far to shrink a row's range: the clip ratio that costs a weight's output least.

Shrinking a row's range trades a larger error on its few extremes for a smaller step everywhere. How
much to shrink is a question with a direct answer. With the inputs ``X`` that a linear reads, row
``w`` loses

    ‖X (w − ŵ)‖² = (w − ŵ) G (w − ŵ)ᵀ,      G = Xᵀ X,

so every row tries a ladder of ratios and keeps the cheapest. ``G`` (the Gram matrix) is collected
once per site and serves all of its linears. Its off-diagonal entries matter: rounding errors of
correlated channels cancel or add up, which neither ``‖w − ŵ‖²`` nor channel weights can see. Rows
do not disturb each other, because the output error is a sum over rows.

Groups of one output channel do interact; here each is judged by its own diagonal part of ``G``.
LWC can start from the result and learn what a single linear cannot know (DuQuant starts all factors
at sigmoid(4) instead). Formats whose scales cannot learn are left with it.
"""

import torch
from torch import Tensor

from duquant.formats.number_format import Clip, NumberFormat, split_rows


def search_clip_ratios(weight: Tensor, gram: Tensor, form: NumberFormat) -> Tensor:
    """Choose one clip ratio, for both ends, for every row.

    Args:
        weight: ``(out, in)``, float32.
        gram: ``Xᵀ X`` of the linear's inputs, ``(in, in)``, float32.
        form: number format of the weight; says which ratios are tried.

    Returns:
        Ratios of shape ``(rows, 1)``, rows by group; a row whose errors are not finite keeps the
        first ratio of the ladder.
    """
    blocks = _diagonal_blocks(gram, form.group_size or weight.shape[1])
    rows = split_rows(weight, form.group_size)
    ratios = torch.full_like(rows[:, :1], form.clip_ratios[0])
    least = torch.full_like(ratios, torch.inf)
    peak = weight.abs().amax()
    for ratio in form.clip_ratios:
        difference = rows - form.fake_quantize(rows, Clip(ratio, ratio), peak)
        error = _output_error(difference, blocks)
        better = error < least
        least = torch.where(better, error, least)
        ratios.masked_fill_(better, ratio)
    return ratios


def _diagonal_blocks(gram: Tensor, size: int) -> Tensor:
    """The blocks ``(groups, size, size)`` on the diagonal of ``(in, in)``."""
    groups = len(gram) // size
    blocks = gram.view(groups, size, groups, size)
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _output_error(difference: Tensor, blocks: Tensor) -> Tensor:
    """``d G dᵀ`` of every row ``(rows, size)``, as ``(rows, 1)``."""
    groups, size, _ = blocks.shape
    by_group = difference.view(-1, groups, size).transpose(0, 1)
    error = (torch.bmm(by_group, blocks) * by_group).sum(dim=-1)
    return error.t().reshape(-1, 1)
