"""E4M3: a float of eight bits, the scale of NVFP4's groups.

Four bits of exponent, three of mantissa, ``2^-9 … 448``. A scale is positive, so one that would
round to zero becomes the smallest number instead: nothing is ever divided by zero.
"""

import torch
from torch import Tensor

LARGEST = 448.0
SMALLEST = 2.0**-9


def e4m3_scales(x: Tensor) -> Tensor:
    """Nearest positive E4M3 numbers, ties to even, as float32; NaN stays NaN.

    Example:
        >>> e4m3_scales(torch.tensor([0.0, 1.0, 1.07, 1000.0])).tolist()
        [0.001953125, 1.0, 1.125, 448.0]
    """
    return x.clamp(SMALLEST, LARGEST).to(torch.float8_e4m3fn).float()


def e4m3_bytes(scales: Tensor) -> Tensor:
    """Bit patterns, ``uint8``, of numbers that are E4M3 already."""
    return scales.to(torch.float8_e4m3fn).view(torch.uint8)


def e4m3_values(stored: Tensor) -> Tensor:
    """Undo :func:`e4m3_bytes`: float32."""
    return stored.view(torch.float8_e4m3fn).float()
