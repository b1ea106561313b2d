"""E8M0: a power of two in one byte, the scale of the OCP microscaling formats.

The byte is the exponent plus 127, the same as bits 23 to 30 of a float32: ``0 … 254`` stand for
``2^-127 … 2^127`` and 255 for NaN (OCP Microscaling Formats 1.0, section 5.4.1). Both directions
move bits, because logarithms and powers are rounded.
"""

import torch
from torch import Tensor

NAN = 255
MANTISSA_BITS = 23
"""Of a float32."""


def e8m0_at_most(x: Tensor, *, exponent: int = 0) -> Tensor:
    """Bytes of ``2^(⌊log₂ x⌋ − exponent)``.

    Args:
        x: numbers from 0 to infinity, any shape; read as float32.
        exponent: what is subtracted, at least 1 where ``x`` may be infinite.

    Returns:
        ``uint8`` of the shape of ``x``; what is too small for E8M0 becomes its smallest power.

    Example:
        >>> e8m0_at_most(torch.tensor([0.0, 1.0, 7.9, 8.0]), exponent=2).tolist()
        [0, 125, 127, 128]
    """
    biased = (x.float().contiguous().view(torch.int32) >> MANTISSA_BITS) & 0xFF
    return (biased - exponent).clamp_(min=0).masked_fill_(x.isnan(), NAN).to(torch.uint8)


def e8m0_values(stored: Tensor) -> Tensor:
    """The float32 powers of two that bytes stand for.

    Example:
        >>> e8m0_values(torch.tensor([126, 127, 130], dtype=torch.uint8)).tolist()
        [0.5, 1.0, 8.0]
    """
    bits = stored.to(torch.int32)
    # As bits of a float32, 2^-127 is half the smallest normal number and NaN half of infinity's
    # binade: both have the upper bit of the mantissa set, the others none.
    half = ((bits == 0) | (bits == NAN)).to(torch.int32) << (MANTISSA_BITS - 1)
    return ((bits << MANTISSA_BITS) | half).view(torch.float32)
