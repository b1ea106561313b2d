"""MXFP4 and NVFP4 of one row, entry by entry: exact fractions, and a search for the nearest number.

Written from the formats' definitions, with nothing of the project in it. Where a format computes in
float32 (NVFP4's scales), so does numpy here, one operation at a time.
"""

import math
from fractions import Fraction

import numpy as np

E2M1 = [Fraction(value) for value in ("0", "1/2", "1", "3/2", "2", "3", "4", "6")]
E4M3 = [
    Fraction(mantissa, 8) * Fraction(2) ** max(exponent - 7, -6)
    + (Fraction(2) ** (exponent - 7) if exponent else 0)
    for exponent in range(16)
    for mantissa in range(8)
][:-1]
"""By bit pattern; the last one is NaN."""


def nearest_code(value: Fraction, numbers: list[Fraction]) -> int:
    """Index of the closest number; of two, the even one."""
    return min(range(len(numbers)), key=lambda code: (abs(numbers[code] - value), code % 2))


def e2m1_code(quotient: float, scale: Fraction = Fraction(1)) -> int:
    magnitude = nearest_code(Fraction(abs(quotient)) / scale, E2M1)
    return magnitude | (8 if math.copysign(1, quotient) < 0 else 0)


def mxfp4_group(entries: list[float]) -> tuple[int, list[int]]:
    """The byte of the scale and the codes."""
    largest = max(abs(entry) for entry in entries)
    exponent = math.frexp(largest)[1] - 1 - 2 if largest else -127
    exponent = max(exponent, -127)
    return exponent + 127, [e2m1_code(entry, Fraction(2) ** exponent) for entry in entries]


def nvfp4_group(entries: list[float], peak: float) -> tuple[int, list[int]]:
    """The byte of the scale and the codes; ``peak`` is not tiny."""
    given = np.array(entries, dtype=np.float32)
    global_scale = np.float32(peak) / np.float32(6 * 448)
    wanted = np.abs(given).max() / np.float32(6) / global_scale
    byte = max(nearest_code(Fraction(min(float(wanted), 448.0)), E4M3), 1)
    step = np.float32(float(E4M3[byte])) * global_scale
    return byte, [e2m1_code(float(entry / step)) for entry in given]
