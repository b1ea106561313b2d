"""The greedy search of a rotation, on the few rows that can matter.

A step multiplies every row (a token's channels of one block) by an orthogonal matrix, then looks
for the largest entry of all. Orthogonal matrices keep a row's norm, and no entry exceeds the norm
of its row: a row whose norm is below the current peak cannot hold it, now or ever. So rows are
ranked by norm once, only those at the top take part, and when the peak falls to the norm of the
next row, more of them join, brought up to date by one product with the rotation so far.

Activations have a few rows that are much longer than the others, the outliers that the search is
about; usually a few percent of the rows take part. The channels chosen are those of the plain loop
over all rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from duquant.ops.kernels import transform as kernel

MARGIN = 1e-4
"""Relative rounding error allowed for when a norm is compared with an entry."""


class _Extremes(NamedTuple):
    """Largest and smallest entry of every search, and where the larger magnitude is.

    Attributes:
        high: largest entry, shape ``(s,)``.
        low: smallest entry.
        row: row of the largest magnitude (the first of several), counted among all rows.
        channel: its channel.
    """

    high: Tensor
    low: Tensor
    row: Tensor
    channel: Tensor


def greedy_search(rows: Tensor, base: Tensor, max_steps: int, *, follow_row: bool) -> Tensor:
    """Search rotations, several independent searches at once.

    Args:
        rows: calibration tensor ``(s, n, b)``: ``s`` searches, ``n`` rows of ``b`` channels.
        base: base matrix of every search, ``(s, b, b)``.
        max_steps: steps of the search.
        follow_row: choose by the row of the largest entry and measure ``max − min``, as the
            authors' code; else by its channel, and measure ``max |entry|``.

    Returns:
        The product after the step with the smallest peak, ``(s, b, b)``.
    """
    block_size = rows.shape[-1]
    product = torch.eye(block_size, device=rows.device).expand_as(base)
    active = _ActiveRows(rows)
    extremes = active.extremes(product, follow_row=follow_row)
    best, best_peak = product.clone(), _peak(extremes, follow_row)
    for _ in range(max_steps):
        channel = extremes.row % block_size if follow_row else extremes.channel
        step = exchange_channels(base, channel)
        product = product @ step
        active.multiply(step)
        extremes = active.extremes(product, follow_row=follow_row)
        peak = _peak(extremes, follow_row)
        better = peak < best_peak
        best_peak = torch.where(better, peak, best_peak)
        best = torch.where(better.view(-1, 1, 1), product, best)
    return best


class _ActiveRows:
    """The rows that take part: the longest of every search, in their original order."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        norms = torch.linalg.vector_norm(rows, dim=-1)
        self._norms, self._ranking = norms.sort(dim=-1, descending=True)
        self._take(1, None)

    def _take(self, count: int, product: Tensor | None) -> None:
        self._indices = self._ranking[:, :count].sort(dim=-1).values
        wide = self._indices.unsqueeze(-1).expand(-1, -1, self._rows.shape[-1])
        taken = self._rows.gather(1, wide)
        self._current = taken if product is None else taken @ product
        self._low, self._high = self._current.aminmax(dim=-1)

    def multiply(self, step: Tensor) -> None:
        """Rotate the rows by one step more."""
        if kernel.serves(self._current, step):
            self._low, self._high = kernel.rotate_rows(self._current, step)
        else:
            self._current = self._current @ step
            self._low, self._high = self._current.aminmax(dim=-1)

    def extremes(self, product: Tensor, *, follow_row: bool) -> _Extremes:
        """Extremes over *all* rows; takes in more rows until no other row can change them.

        Args:
            product: the rotation so far, for rows that join.
            follow_row: both ends count, not only the larger.
        """
        while True:
            high, low = self._high.amax(dim=1), self._low.amin(dim=1)
            reach = torch.minimum(high, -low) if follow_row else torch.maximum(high, -low)
            eligible = self._norms * (1 + MARGIN) >= reach.unsqueeze(1)
            needed = int(eligible.sum(dim=1).max())
            count = self._indices.shape[1]
            if needed <= count:
                return self._locate(torch.maximum(self._high, -self._low), high, low)
            self._take(min(needed, 2 * count + 64), product)

    def _locate(self, magnitude: Tensor, high: Tensor, low: Tensor) -> _Extremes:
        first = magnitude.argmax(dim=1, keepdim=True)
        each = torch.arange(len(first), device=first.device)
        channel = self._current[each, first.squeeze(1)].abs().argmax(dim=1)
        return _Extremes(high, low, self._indices.gather(1, first).squeeze(1), channel)


def exchange_channels(base: Tensor, channel: Tensor) -> Tensor:
    """Exchange rows and columns 0 and ``channel`` of each matrix.

    Args:
        base: shape ``(s, b, b)``.
        channel: one index per matrix, shape ``(s,)``.

    Returns:
        Shape ``(s, b, b)``.
    """
    count, size, _ = base.shape
    order = torch.arange(size, device=base.device).repeat(count, 1)
    order.scatter_(1, channel.unsqueeze(1), 0)
    order[:, 0] = channel
    rows = base.gather(1, order.unsqueeze(2).expand_as(base))
    return rows.gather(2, order.unsqueeze(1).expand_as(base))


def _peak(extremes: _Extremes, as_range: bool) -> Tensor:
    high, low = extremes.high, extremes.low
    return high - low if as_range else torch.maximum(high, -low)
