"""Balancing: the change of basis in which two factors of a product lose least to rounding.

Rounding adds noise to every coordinate of ``x A`` in proportion to the length of ``x A``, and what
multiplies it turns that noise into an error of the product ``(x A)(w A⁻ᵀ)ᵀ = x wᵀ``; likewise for
``w``. With the second moments ``S = E[xᵀx]`` and ``M = Σ wᵀw`` both errors are in proportion to

    tr(Aᵀ S A) · tr(A⁻¹ M A⁻ᵀ),

which is least, ``(Σ λ)²``, where ``Aᵀ S A = A⁻¹ M A⁻ᵀ = diag(λ)``: the balanced coordinates of
control theory (Moore 1981). Smoothing is the same with a diagonal ``A``. Behind it a rotation
spreads the ``λ`` over all coordinates, which changes neither trace.
"""

import torch
from torch import Tensor

DAMPING = 1e-3
"""Share of the mean diagonal that is added to both diagonals: what was never seen is no zero."""


def balancing(first: Tensor, second: Tensor) -> Tensor:
    """The matrices ``A`` that balance pairs of second moments.

    Args:
        first: symmetric and positive semidefinite ``(..., width, width)``, of what is multiplied by
            ``A``.
        second: likewise, of what is multiplied by ``A⁻ᵀ``.

    Returns:
        float64 ``(..., width, width)``; the identity where either is zero or not finite.
    """
    identity = torch.eye(first.shape[-1], dtype=torch.float64, device=first.device)
    first, second = (_damped(moments.double(), identity) for moments in (first, second))
    usable = (_is_usable(first) & _is_usable(second))[..., None, None]
    first, second = (torch.where(usable, moments, identity) for moments in (first, second))
    lower = torch.linalg.cholesky(first)
    squares, vectors = torch.linalg.eigh(lower.transpose(-1, -2) @ second @ lower)
    roots = squares.clamp(min=torch.finfo(torch.float64).tiny).pow(0.25)
    found = torch.linalg.solve_triangular(lower.transpose(-1, -2), vectors, upper=True)
    return torch.where(usable, found * roots[..., None, :], identity)


def shrunk(moments: Tensor, samples: float) -> Tensor:
    """Second moments ``(..., width, width)`` of few samples, less sure of what is correlated.

    Entries off the diagonal lose ``width / (samples + width)`` of their size: a thousand samples of
    eight channels keep theirs, eight samples keep half.
    """
    width = moments.shape[-1]
    diagonal = moments.diagonal(dim1=-2, dim2=-1).diag_embed()
    return moments + width / (samples + width) * (diagonal - moments)


def _damped(moments: Tensor, identity: Tensor) -> Tensor:
    mean = moments.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    return moments + DAMPING * mean[..., None, None] * identity


def _is_usable(moments: Tensor) -> Tensor:
    diagonal = moments.diagonal(dim1=-2, dim2=-1)
    return (diagonal > 0).all(dim=-1) & moments.isfinite().flatten(-2).all(dim=-1)
