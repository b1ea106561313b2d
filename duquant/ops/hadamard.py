"""Hadamard matrices: orthogonal, entries ``±1/√n``, the same for every model.

``H[i, j] = (-1)**popcount(i & j) / √n`` (Sylvester's construction), symmetric, so it is its own
inverse. Multiplying Q and K by it along the head dimension spreads outlier channels over the whole
head and leaves ``Q Kᵀ`` as it was.
"""

import torch
from torch import Tensor


def hadamard_matrix(size: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalized Hadamard matrix of shape ``(size, size)``, on the CPU.

    Raises:
        ValueError: if ``size`` is not a power of two.
    """
    if size < 1 or size & (size - 1):
        raise ValueError(f"a Hadamard matrix needs a power of two, not {size}")
    matrix = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    normalized: Tensor = (matrix / size**0.5).to(dtype)
    return normalized


def largest_power_of_two_divisor(size: int, limit: int) -> int:
    """Largest power of two that divides ``size`` and is at most ``limit``."""
    divisor = size & -size
    while divisor > limit:
        divisor //= 2
    return divisor
