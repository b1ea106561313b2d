"""Rows that number formats stumble over."""

import math

import torch
from torch import Tensor

from tests.outliers import outlier_activation

LARGEST = torch.finfo(torch.float32).max
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
SMALLEST_SUBNORMAL = 2.0**-149


def adversarial_rows(columns: int) -> Tensor:
    """Float32 ``(rows, columns)``: zeros, subnormals, ties, ends of binades, 1e38, lone entries."""
    ties = torch.arange(columns) % 64 / 8  # every tie of E2M1 times a power of two
    falling = torch.logspace(0, -30, columns)
    alternating = torch.tensor([1.0, -1.0]).repeat(columns)[:columns]
    rows = [torch.zeros(columns), -torch.zeros(columns), ties, -ties, ties * alternating, falling]
    for value in (SMALLEST_SUBNORMAL, 1e-40, SMALLEST_NORMAL, 1e-30, 1e30, 1e38, LARGEST):
        rows += [torch.full((columns,), value), lone(columns, value), value * (ties / 8)]
    for exponent in (-126, -20, 0, 20, 126):
        power = 2.0**exponent
        for value in (power, math.nextafter(power, 0), power * 1.75, power * 1.9999999):
            rows.append(torch.linspace(-1, 1, columns) * value)
    return torch.stack([row.float() for row in rows])


def lone(columns: int, value: float) -> Tensor:
    """One entry among zeros."""
    return torch.zeros(columns).index_fill(0, torch.tensor(columns // 2), value)


def ordinary_rows(columns: int, seed: int) -> Tensor:
    """Rows of normal values with outliers, at scales from 1e-6 to 1e6."""
    scales = 10.0 ** torch.arange(-6, 7).unsqueeze(-1)
    return outlier_activation(len(scales), columns, seed) * scales
