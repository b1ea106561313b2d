"""E2M1: the floating-point number of four bits that MXFP4 and NVFP4 share.

One bit of sign, two of exponent, one of mantissa: ``±0, 0.5, 1, 1.5, 2, 3, 4, 6``. The code is the
bit pattern, the sign in bit 3; the eight magnitudes are the codes 0 to 7 in order (OCP
Microscaling Formats 1.0, section 5.3.3).

The steps are 0.5 up to 2, 1 up to 4 and 2 up to 6, so the code of a magnitude is the least of three
straight lines, ``2a``, ``a + 2`` and ``a/2 + 4``, and the magnitude of a code the greatest of their
inverses. Rounding each line to even rounds ties to the even code, as IEEE 754 does.
"""

import torch
from torch import Tensor

LARGEST = 6.0
LARGEST_EXPONENT = 2
"""Of the power of two in the largest magnitude, ``6 = 1.5 · 2²``."""
SIGN_BIT = 3
LARGEST_MAGNITUDE_CODE = 7


def e2m1_codes(x: Tensor) -> Tensor:
    """Codes of the nearest E2M1 numbers, ties to even; beyond 6 that of 6.

    Args:
        x: float values, any shape.

    Returns:
        ``uint8 0 … 15``, shape of ``x``; negative values that round to zero keep their sign.

    Example:
        >>> e2m1_codes(torch.tensor([0.25, 0.3, 1.7, 2.5, 5.1, -0.1, -9.0])).tolist()
        [0, 1, 3, 4, 7, 8, 15]
    """
    a = x.abs()
    code = torch.minimum((2 * a).round_(), a.round().add_(2))
    code = torch.minimum(code, (a / 2).round_().add_(4)).clamp_(max=LARGEST_MAGNITUDE_CODE)
    return code.to(torch.uint8) | (x.signbit().to(torch.uint8) << SIGN_BIT)


def e2m1_values(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that codes stand for; code 8 is ``-0.0``.

    Args:
        codes: ``uint8 0 … 15``, any shape.
        dtype: of the result; any float type holds them exactly.
    """
    m = (codes & LARGEST_MAGNITUDE_CODE).to(dtype)
    magnitude = torch.maximum(torch.maximum(m / 2, m - 2), 2 * m - 8)
    sign = 1 - 2 * (codes >> SIGN_BIT).to(dtype)
    return magnitude.mul_(sign)
