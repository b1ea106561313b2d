"""The rotation search as Algorithm 1 reads, and rows to search."""

import torch
from torch import Tensor

from duquant.ops.greedy_search import SAME, exchange_channels


def plain_search(rows: Tensor, base: Tensor, max_steps: int, *, follow_row: bool) -> Tensor:
    """Every row takes part in every step, in float64; the first of equal entries counts."""
    size = rows.shape[-1]
    product = torch.eye(size).expand_as(base)
    best, best_peak, flat = product, _peak(rows.double().flatten(1), follow_row), rows.flatten(1)
    for _ in range(max_steps):
        largest = flat.abs().amax(dim=1, keepdim=True)
        position = (flat.abs() >= largest * (1 - SAME)).byte().argmax(dim=1)
        channel = position // size % size if follow_row else position % size
        product = product @ exchange_channels(base, channel)
        flat = (rows.double() @ product.double()).flatten(1)
        better = _peak(flat, follow_row) < best_peak * (1 - SAME)
        best_peak = torch.where(better, _peak(flat, follow_row), best_peak)
        best = torch.where(better.view(-1, 1, 1), product, best)
    return best


def _peak(flat: Tensor, as_range: bool) -> Tensor:
    low, high = flat.aminmax(dim=1)
    return high - low if as_range else torch.maximum(high, -low)


def calibration_rows(seed: int, searches: int, count: int, size: int, spread: float) -> Tensor:
    """Rows of very different norms (``spread`` 0: of equal ones), some of them twice."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(searches, count, size, generator=generator)
    rows *= torch.exp(spread * torch.randn(searches, count, 1, generator=generator))
    rows[:, : count // 2, 0] *= 1 + 10 * spread
    rows[:, -1] = rows[:, 0]
    return rows


def rows_of_one_sign(size: int) -> Tensor:
    """Four searches: equal entries by the hundred, zeros alone, an end of the range at zero."""
    rows = torch.rand(4, 50, size, generator=torch.Generator().manual_seed(2))
    rows[1] = 0
    rows[2] = 1
    rows[3, 7] = 0
    return rows
