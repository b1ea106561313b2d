"""The greedy search of a rotation on an accelerator, which waits for no number of a step.

It chooses what :mod:`duquant.ops.greedy_search` chooses. An accelerator multiplies all rows sooner
than the host learns how many of them matter. So nothing has a size that depends on values: a step
multiplies every row in float32, and computes in float64 the same number of rows each time, those
whose entries can be the largest by the bound of the rounding error.

Whether they were enough is known from the smallest of their bounds, which no other row's passes: an
entry as large as that is the largest of all. By how much it ever fell short is a number on the
device (``doubt``). The host asks for it after many steps; if it is above zero, the host goes back
to where it asked before, and takes four times as many rows. It takes equal rows for that, as a
token that is repeated makes them. In the end all rows are computed in float64, which leaves no
doubt.

On CUDA steps are repeated as a graph where they can be (:mod:`duquant.ops.captured`), which has not
run on a GPU yet.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from duquant.ops.captured import repeated
from duquant.ops.greedy_search import SAME, near_one
from duquant.ops.screen import ROUNDING

EXACT_ROWS = 16
"""Rows of every search that are computed in float64, to begin with."""
MORE = 4
"""How many times as many, when they were not enough."""
STEPS_AT_ONCE = 64
"""Steps between two questions of the host."""


class _State(NamedTuple):
    """Where every search stands.

    Attributes:
        product: of the steps so far, float32 ``(s, b, b)``.
        channel: what the next step exchanges, ``(s,)``.
        best: the product with the smallest peak, ``(s, b, b)``.
        best_peak: its peak, float64 ``(s,)``.
        doubt: by how much a row that was left out may have been larger than an end of the range,
            float64 ``(s, ends)``; not more than 0 if none was.
    """

    product: Tensor
    channel: Tensor
    best: Tensor
    best_peak: Tensor
    doubt: Tensor


def search_on_device(rows: Tensor, base: Tensor, max_steps: int, *, follow_row: bool) -> Tensor:
    """:func:`duquant.ops.greedy_search.greedy_search`, for tensors of an accelerator.

    The host waits for the device twice, once more for every further ``STEPS_AT_ONCE`` steps, and
    once more whenever rows were too few. Each graph of steps adds two.
    """
    rows = near_one(rows)
    search = _Search(rows, base, min(EXACT_ROWS, rows.shape[1]), follow_row=follow_row)
    state, left = search.start(), max_steps
    while True:
        at_once = min(left, STEPS_AT_ONCE)
        after = search.steps(state, at_once)
        if search.is_sure(after):
            state, left = after, left - at_once
            if not left:
                return state.best
            continue
        more = min(MORE * search.exact_rows, rows.shape[1])
        search = _Search(rows, base, more, follow_row=follow_row)
        if left == max_steps:
            state = search.start()


class _Search:
    """Steps of fixed shapes.

    Args:
        rows: calibration tensor ``(s, n, b)``.
        base: ``(s, b, b)``.
        exact_rows: rows of every search, and of either end of its range, that a step computes in
            float64.
        follow_row: as for :func:`duquant.ops.greedy_search.greedy_search`.
    """

    def __init__(self, rows: Tensor, base: Tensor, exact_rows: int, *, follow_row: bool) -> None:
        searches, _, size = rows.shape
        self._rows, self._base, self._follow_row = rows, base, follow_row
        self.exact_rows = exact_rows
        self._error = ROUNDING * size * torch.linalg.vector_norm(rows, dim=2).unsqueeze(1)
        self._each = torch.arange(searches, device=rows.device).view(-1, 1, 1)
        self._channels = torch.arange(size, device=rows.device)
        self._orders = self._channels.repeat(size, 1).fill_diagonal_(0)  # 0 and c exchanged
        self._orders[:, 0] = self._channels

    def start(self) -> _State:
        """Before the first step."""
        searches, _, size = self._rows.shape
        product = torch.eye(size, dtype=torch.float32, device=self._rows.device)
        product = product.repeat(searches, 1, 1)
        peak, channel, doubt = self._extremes(product)
        return _State(product, channel, product, peak, doubt)

    def steps(self, state: _State, count: int) -> _State:
        """``count`` steps further; ``state`` stays as it is."""
        return repeated(self._step, state, count)

    def is_sure(self, state: _State) -> bool:
        """Whether all steps so far found the largest entries; the host waits to know."""
        return self.exact_rows == self._rows.shape[1] or not bool((state.doubt > 0).any())

    def _step(self, state: _State) -> _State:
        order = self._orders[state.channel]
        exchanged = self._base[self._each, order.unsqueeze(2), order.unsqueeze(1)]
        product = torch.bmm(state.product, exchanged)
        peak, channel, doubt = self._extremes(product)
        better = peak < state.best_peak * (1 - SAME)
        return _State(
            product,
            channel,
            torch.where(better.view(-1, 1, 1), product, state.best),
            torch.where(better, peak, state.best_peak),
            torch.maximum(state.doubt, doubt),
        )

    def _extremes(self, product: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the search makes small, the channel for the next step, and the doubt."""
        number, bound = self._candidates(product)
        rows = self._rows[self._each.squeeze(2), number]
        exact = torch.bmm(rows.double(), product.double())
        ends, size = self._ends(exact.flatten(1)), exact.shape[2]
        largest = (ends.amax(dim=1) if self._follow_row else ends).view(-1, 1, 1) * (1 - SAME)
        entry = torch.add(self._channels, number.unsqueeze(2), alpha=size)
        entry.masked_fill_(exact.abs() < largest, self._rows[0].numel())
        first = entry.amin(dim=(1, 2))
        doubt = bound - ends
        if self._follow_row:
            return ends.sum(dim=1), first // size % size, doubt
        return ends.squeeze(1), first % size, doubt

    def _candidates(self, product: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the rows that may hold extremes, and a bound for the ends of all others.

        Returns:
            ``(s, candidates)`` and ``(s, ends)``.
        """
        searches, count, _ = self._rows.shape
        if self.exact_rows == count:
            number = torch.arange(count, device=product.device).repeat(searches, 1)
            return number, product.new_full((searches, 1), -torch.inf)
        ends = self._ends(torch.bmm(self._rows, product)) + self._error
        bounds, numbers = ends.topk(self.exact_rows, dim=2)
        return numbers.flatten(1), bounds[:, :, -1]

    def _ends(self, values: Tensor) -> Tensor:
        """Of the last dimension of ``(s, …, b)`` what matters, behind the first dimension.

        Its magnitude, or where the search follows rows its largest and −smallest value.
        """
        if self._follow_row:
            low, high = values.aminmax(dim=-1)
            return torch.stack([high, -low], dim=1)
        magnitude: Tensor = torch.linalg.vector_norm(values, torch.inf, dim=-1)
        return magnitude.unsqueeze(1)
