"""The greedy search of a rotation, on the few entries that can matter.

A step multiplies every row (a token's channels of one block) by an orthogonal matrix, then looks
for the largest entry of all. Two things can be known without looking exactly:

* Orthogonal matrices keep a row's norm, and no entry exceeds the norm of its row: a row whose norm
  is below the current peak cannot hold it, now or ever. So rows are ranked by norm once, only those
  at the top take part, and when the peak falls to the norm of the next row, more of them join.
  Activations have a few rows that are much longer than the others, the outliers that the search is
  about; usually a few percent of the rows take part.
* Of those, a product in low precision whose error is bounded tells which rows can hold the peak
  (:mod:`duquant.ops.screen`).

What is left, a handful of entries, is computed in float64, and those that are equal but for
rounding count as equal. So of one rotation so far (a float32 product, as processors compute it) the
channel chosen is that of a plain loop over all rows, whatever the order of additions in there.

How many rows join and how many entries are left is different at every step, and an accelerator
would be waited for to know. There :mod:`duquant.ops.device_search` chooses the same.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from duquant.ops.screen import Screen

MARGIN = 1e-4
"""Relative rounding error allowed for when a norm is compared with an entry."""
SAME = 1e-9
"""Relative difference below which two float64 entries count as equal."""
HUGE = 2.0**40
"""Rows with a larger entry are scaled down."""
AT_LEAST = 64
"""Rows that are looked at for joining, beside as many as take part already."""
AT_ONCE = 1 << 16
"""Entries that are computed exactly at once."""


class _Extremes(NamedTuple):
    """What a step looks at, of every search.

    Attributes:
        peak: what the search makes small, float64 of shape ``(s,)``.
        reach: a row whose norm is smaller than this does not matter.
        row: row of the largest magnitude (the first of several), counted among all rows.
        channel: its channel.
    """

    peak: Tensor
    reach: Tensor
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
        The product after the step with the smallest peak, float32 ``(s, b, b)``.
    """
    size, rows = rows.shape[-1], near_one(rows)
    product = torch.eye(size, dtype=torch.float32, device=rows.device).repeat(len(rows), 1, 1)
    active = _ActiveRows(rows, follow_row=follow_row)
    extremes = active.extremes(product)
    best, best_peak = product.clone(), extremes.peak
    for _ in range(max_steps):
        channel = extremes.row % size if follow_row else extremes.channel
        product = product @ exchange_channels(base, channel)
        extremes = active.extremes(product)
        better = extremes.peak < best_peak * (1 - SAME)
        best_peak = torch.where(better, extremes.peak, best_peak)
        best[better] = product[better]
    return best


def near_one(rows: Tensor) -> Tensor:
    """Rows whose squares are ordinary numbers: those of huge or tiny ones are, after a shift."""
    largest = torch.maximum(rows.amax(dim=(1, 2)), -rows.amin(dim=(1, 2)))
    if ((largest == 0) | ((largest > 1 / HUGE) & (largest < HUGE))).all():
        return rows
    power = 2.0 ** -torch.frexp(largest).exponent.double()
    return (rows.double() * power.view(-1, 1, 1)).float()


class _ActiveRows:
    """The rows that take part: the longest of every search.

    Args:
        rows: as for :func:`greedy_search`.
        follow_row: both ends of the entries' range matter, not only the larger.
    """

    def __init__(self, rows: Tensor, *, follow_row: bool) -> None:
        self._rows, self._follow_row = rows, follow_row
        norms = torch.linalg.vector_norm(rows, dim=-1)
        self._norms, self._ranking = norms.sort(dim=-1, descending=True)
        self._screen = Screen(rows, self._ranking)
        self._screen.take(1)

    def extremes(self, product: Tensor) -> _Extremes:
        """Extremes over *all* rows; takes in more rows until no other row can change them."""
        while True:
            extremes, count = self._extremes_of_active(product), self._screen.count
            longest_left = self._norms[:, count : 2 * count + AT_LEAST] * (1 + MARGIN)
            if not longest_left.numel():
                return extremes
            eligible = int((longest_left >= extremes.reach.unsqueeze(1)).any(dim=0).sum())
            if not eligible:
                return extremes
            self._screen.take(count + eligible)

    def _extremes_of_active(self, product: Tensor) -> _Extremes:
        search, row, channel = self._possible(product)
        chunks = zip(*(at.split(AT_ONCE) for at in (search, row, channel)), strict=True)
        exact = torch.cat([
            (self._rows[s, r].double() * product[s, :, c].double()).sum(dim=1) for s, r, c in chunks
        ])  # fmt: skip
        lowest = exact.new_full((len(product),), -torch.inf)
        ends = torch.stack([
            lowest.scatter_reduce(0, search, end, "amax")
            for end in ((exact, -exact) if self._follow_row else (exact.abs(),))
        ])  # fmt: skip
        largest = ends.amax(dim=0) * (1 - SAME)
        beyond = len(exact)
        order = torch.arange(beyond, device=exact.device)
        order = torch.where(exact.abs() < largest[search], beyond, order)
        first = order.new_full((len(product),), beyond).scatter_reduce(0, search, order, "amin")
        return _Extremes(ends.sum(dim=0), ends.amin(dim=0), row[first], channel[first])

    def _possible(self, product: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Search, row and channel of entries that may be extremes, in this order."""
        _, count, size = self._rows.shape
        search, place, channel = self._screen.extremes(product, both=self._follow_row)
        entry = (search * count + self._ranking[search, place]) * size + channel
        entry = torch.sort(entry)[0]
        return entry // (count * size), entry // size % count, entry % size


def exchange_channels(base: Tensor, channel: Tensor) -> Tensor:
    """Exchange rows and columns 0 and ``channel`` of each matrix.

    Args:
        base: shape ``(s, b, b)``.
        channel: one index per matrix, shape ``(s,)``.

    Returns:
        Shape ``(s, b, b)``.
    """
    each = torch.arange(len(base), device=base.device)
    step = base.clone()
    step[:, 0], step[each, channel] = base[each, channel], base[:, 0]
    columns = step[:, :, 0].clone()
    step[:, :, 0] = step[each, :, channel]
    step[each, :, channel] = columns
    return step
