"""Where the largest entries of a product can be, at the price of a product in low precision.

A rotation search asks at every step for the largest entry among millions, and needs to know exactly
only the few that come near it. The operator ``duquant::screen_rows`` names them: all entries that a
product whose error is bounded cannot tell from the largest. Its definition multiplies in float32; a
kernel may multiply in less, and then names a few more.

What is prepared of the rows is kept from step to step, in a layout that only who prepared it knows.
So nothing is said about it to a compiler: a search is not part of a graph.
"""

import torch
from torch import Tensor

ROUNDING = 2.0**-23
"""Error of a float32 sum of products with a column of norm 1, per channel, in norms of the row."""


class Screen:
    """The longest rows of several searches, in the order of their ranking.

    Args:
        rows: float32 ``(searches, n, b)``; their largest magnitude should be near 1, or squares may
            overflow or vanish.
        ranking: int64 ``(searches, n)``, numbers of rows.
    """

    def __init__(self, rows: Tensor, ranking: Tensor) -> None:
        self._rows, self._ranking = rows, ranking
        self._prepared: list[Tensor] = []
        self.count = 0

    def take(self, count: int) -> None:
        """Let more rows take part, up to the first ``count`` of every ranking."""
        assert self.count <= count <= self._ranking.shape[1]
        self.count = count

    def extremes(self, matrices: Tensor, *, both: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Entries of the rows times their search's matrix that may be its largest.

        Args:
            matrices: float32 ``(searches, b, b)``, orthogonal.
            both: search for the largest and for the smallest, not for the largest magnitude.

        Returns:
            Search, place in its ranking and channel of every such entry, in no order; at least one
            of each search.
        """
        ranking = self._ranking[:, : self.count]
        places, *prepared = screen_rows(self._rows, ranking, matrices, both, self._prepared)
        self._prepared = prepared or self._prepared
        search, place, channel = places.unbind(dim=1)
        return search, place, channel


def screen_in_steps(
    rows: Tensor, ranking: Tensor, matrices: Tensor, both: bool, prepared: list[Tensor]
) -> list[Tensor]:
    """The definition of the operator.

    Args:
        rows: float32 ``(searches, n, b)``.
        ranking: int64 ``(searches, k)``, numbers of the rows that take part.
        matrices: float32 ``(searches, b, b)``.
        both: see :meth:`Screen.extremes`.
        prepared: what an earlier call returned behind its places, with the same rows and with the
            same numbers in front of the ranking; or nothing.

    Returns:
        int64 ``(found, 3)``: search, place in the ranking, channel. Then what is to be given next
        time, or nothing where ``prepared`` holds all rows.
    """
    is_new = not prepared or prepared[0].shape[1] < ranking.shape[1]
    taken, error = _with_error(rows, ranking) if is_new else prepared
    values = taken @ matrices
    possible = torch.zeros_like(values, dtype=torch.bool)
    for end in (values, -values) if both else (values.abs(),):
        reach = (end - error).amax(dim=(1, 2), keepdim=True)
        possible |= end + error >= reach
    possible &= error[:, :1] > 0  # over zeros all entries would be the largest
    possible[:, 0, 0] |= error[:, 0, 0] == 0
    return [possible.nonzero(), taken, error] if is_new else [possible.nonzero()]


def _with_error(rows: Tensor, ranking: Tensor) -> tuple[Tensor, Tensor]:
    """The ranked rows, and the largest error of an entry of their products."""
    taken = rows.gather(1, ranking.unsqueeze(2).expand(-1, -1, rows.shape[2]))
    norms = torch.linalg.vector_norm(taken, dim=2, keepdim=True)
    return taken, ROUNDING * taken.shape[2] * norms


screen_rows = torch.library.custom_op(
    "duquant::screen_rows",
    screen_in_steps,
    mutates_args=(),
    schema="(Tensor rows, Tensor ranking, Tensor matrices, bool both, Tensor[] prepared)"
    " -> Tensor[]",
)
