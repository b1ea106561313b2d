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

import torch
from torch import Tensor

FIRST_DAMPING = 1e-8
"""Tried after no damping was not enough."""
LARGEST_DAMPING = 1e8


def error_feedback(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """Feedback of every column's error to the later columns.

    A Gram matrix of few tokens is singular, and sums in float32 can make it indefinite; a share of
    its mean diagonal is added to the diagonal, ten times as much each time the factorization fails.
    Inputs that were always zero take no part. A Gram matrix that is not finite says nothing: no
    feedback, which is infinite damping.

    Args:
        gram: ``Xᵀ X``, ``(in, in)``.
        damping: first share, 0 or more.

    Returns:
        ``A`` without its diagonal, float32 ``(in, in)``, strictly upper triangular; and the share
        that was needed.
    """
    wide = gram.double()
    if not torch.isfinite(wide).all():
        return torch.zeros_like(gram, dtype=torch.float32), math.inf
    wide = _without_dead(wide)
    diagonal = wide.diagonal()
    mean = diagonal.mean()
    given = diagonal.clone()
    while damping <= LARGEST_DAMPING:
        diagonal.copy_(given + damping * mean)
        # Reversing rows and columns turns a lower triangular factor into an upper one.
        lower, failed = torch.linalg.cholesky_ex(wide.flip(0, 1))
        if not failed:
            upper = lower.flip(0, 1)
            return (upper / upper.diagonal()).triu_(1).float(), damping
        damping = max(10 * damping, FIRST_DAMPING)
    raise AssertionError("a symmetric matrix with a dominant diagonal has a Cholesky factor")


def _without_dead(gram: Tensor) -> Tensor:
    """``gram`` with the identity, on the scale of the rest, in place of inputs without energy."""
    dead = gram.diagonal() <= 0
    if not dead.any():
        return gram.clone()
    gram = gram.masked_fill(dead, 0).masked_fill_(dead.unsqueeze(-1), 0)
    mean = gram.diagonal().sum() / (~dead).sum().clamp(min=1)
    gram.diagonal()[dead] = torch.where(mean > 0, mean, 1.0)
    return gram
