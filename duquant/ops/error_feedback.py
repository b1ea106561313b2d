"""How the error of one column is best made good by the columns that are rounded after it.

Rounding a row ``w`` of a weight to ``q`` costs ``e G eᵀ`` with ``e = w − q`` and ``G = Xᵀ X``, the
Gram matrix of the inputs. Factor ``G = A D Aᵀ`` with ``A`` upper triangular, ones on its diagonal,
and ``D`` diagonal:

    e G eᵀ = Σₖ Dₖ (eₖ + Σ_{j<k} eⱼ Aⱼₖ)²

Column ``k`` makes its term small by rounding ``wₖ + Σ_{j<k} eⱼ Aⱼₖ`` instead of ``wₖ``. That is
GPTQ (Frantar et al. 2022), whose update through the Cholesky factor of ``G⁻¹`` gives the same
numbers (Chee et al. 2023, QuIP, theorem 6); this way nothing is inverted.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

FIRST_DAMPING = 1e-8
"""Tried after no damping was not enough."""
LARGEST_DAMPING = 1e8
ROWS_AT_ONCE = 256
"""Rows of a copy, so that it takes no more memory than what it is copied to."""


def error_feedback(
    gram: Tensor, damping: float, order: Tensor | None = None
) -> tuple[Tensor, float]:
    """Feedback of every column's error to the columns that are rounded later.

    A Gram matrix of few tokens is singular, and sums in float32 can make it indefinite; a share of
    its mean diagonal is added to the diagonal, ten times as much each time the factorization fails.
    Inputs that were always zero take no part. A Gram matrix that is not finite says nothing: no
    feedback, which is infinite damping.

    One float64 matrix is held besides the argument and the result: those of large models have
    gigabytes.

    Args:
        gram: ``Xᵀ X``, symmetric, ``(in, in)``.
        damping: first share, 0 or more.
        order: in which columns are rounded, ``(in,)`` (default: as they lie).

    Returns:
        ``Aᵀ`` without its diagonal, float32 ``(in, in)``, strictly lower triangular, rows and
        columns in their order: row ``k`` is what errors of earlier columns add to column ``k``;
        and the share that was needed.
    """
    width = len(gram)
    if not torch.isfinite(gram).all():
        return torch.zeros_like(gram, dtype=torch.float32), math.inf
    if order is None:
        order = torch.arange(width, device=gram.device)
    given = gram.diagonal().double()[order]
    dead = given <= 0
    if dead.any():  # the scale of the rest, in place of inputs without energy
        scale = given.masked_fill(dead, 0).sum() / (~dead).sum().clamp(min=1)
        given = torch.where(dead, torch.where(scale > 0, scale, 1.0), given)
    mean = given.mean()
    # Reversing rows and columns turns a lower triangular factor into an upper one. LAPACK reads
    # matrices by columns: in a transposed tensor it works in place.
    backwards, lower = order.flip(0), gram.new_empty(width, width, dtype=torch.float64).mT
    failed = torch.empty((), dtype=torch.int32, device=gram.device)
    while damping <= LARGEST_DAMPING:
        for rows in _chunks(width):
            lower.mT[rows] = gram[backwards[rows]][:, backwards]
        lower[dead.flip(0)] = 0
        lower[:, dead.flip(0)] = 0
        lower.diagonal().copy_((given + damping * mean).flip(0))
        torch.linalg.cholesky_ex(lower, out=(lower, failed))
        if not failed:
            return _in_units_of_diagonal(lower.mT), damping
        damping = max(10 * damping, FIRST_DAMPING)
    raise AssertionError("a symmetric matrix with a dominant diagonal has a Cholesky factor")


def _in_units_of_diagonal(upper: Tensor) -> Tensor:
    """Every row over its diagonal, without that, in float32; both axes reversed."""
    width = len(upper)
    arriving = upper.new_empty(width, width, dtype=torch.float32)
    diagonal = upper.diagonal()
    for rows in _chunks(width):
        scaled = upper[rows] / diagonal[rows, None]
        arriving[width - rows.stop : width - rows.start] = scaled.flip(0, 1)
    return arriving.tril_(-1)


def _chunks(width: int) -> Iterator[slice]:
    return (slice(k, min(k + ROWS_AT_ONCE, width)) for k in range(0, width, ROWS_AT_ONCE))
