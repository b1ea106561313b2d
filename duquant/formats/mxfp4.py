"""MXFP4: four-bit floats in groups of 32 with a power of two as their scale.

The microscaling format of the Open Compute Project (OCP Microscaling Formats 1.0): E2M1 numbers
(:mod:`duquant.ops.e2m1`), one E8M0 scale (:mod:`duquant.ops.e8m0`) for 32 of them, 4.25 bits per
entry. The scale is ``2^(⌊log₂ amax⌋ − 2)``, so the largest entry lands between 4 and 8 and
saturates at 6 (section 6.3).

A clip factor moves the scale only when it crosses a power of two, by a factor of two: it has no
useful gradient, and is searched instead. Factors above 1 make sense here: 2 keeps an entry near 8
from saturating.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from duquant.formats.number_format import (
    NO_CLIP,
    Clip,
    Grid,
    StoredShapes,
    largest_divisor,
    largest_magnitude,
    num_groups,
)
from duquant.ops.e2m1 import LARGEST_EXPONENT, e2m1_codes, e2m1_values
from duquant.ops.e8m0 import e8m0_at_most, e8m0_values
from duquant.ops.packing import pack_fitting, packed_width, unpack
from duquant.ops.precision import widen
from duquant.ops.straight_through import straight_through
from duquant.ops.value_rules import BYTES, ValueRule, in_range

OCP_GROUP = 32


@dataclass(frozen=True)
class MXFP4:
    """E2M1 numbers times a power of two per group. The grid is the scale, float32.

    Stored: ``packed``, the first of two entries in the low half of a byte, and ``scale`` as E8M0,
    ``uint8 (rows, groups)``. compressed-tensors calls them ``weight_packed`` and ``weight_scale``
    and lays them out alike.

    Args:
        group_size: consecutive entries that share a scale: 32, fewer only where 32 does not divide
            a row.
    """

    name: ClassVar[str] = "mxfp4"
    learns_clip_factors: ClassVar[bool] = False
    needs_peak: ClassVar[bool] = False
    clip_ratios: ClassVar[Sequence[float]] = (1.0, 0.5, 2.0)  # its scales are powers of two
    stored_rules: ClassVar[Mapping[str, ValueRule]] = {
        "packed": BYTES,
        "scale": in_range(torch.uint8, 0, 254),  # 255 is E8M0's NaN
    }
    bits: ClassVar[int] = 4

    group_size: int = OCP_GROUP

    def __post_init__(self) -> None:
        """Check the number."""
        if not 1 <= self.group_size <= OCP_GROUP:
            raise ValueError(
                f"group_size is {self.group_size}; mxfp4 has groups of {OCP_GROUP}, or fewer where "
                f"that does not divide a row"
            )

    @torch.no_grad()
    def grid(self, x: Tensor, clip: Clip = NO_CLIP, peak: Tensor | None = None) -> Grid:
        """The scale; of a row of zeros the smallest, ``2^-127``."""
        magnitude = largest_magnitude(widen(x), clip)
        return (e8m0_values(e8m0_at_most(magnitude, exponent=LARGEST_EXPONENT)),)

    def codes(self, x: Tensor, grid: Grid) -> Tensor:
        """E2M1 bit patterns."""
        return e2m1_codes(widen(x) / grid[0])

    def values(self, codes: Tensor, grid: Grid) -> Tensor:
        """E2M1 numbers times the scale, float32; exact, down to subnormal results."""
        return e2m1_values(codes) * grid[0]

    def fake_quantize(self, x: Tensor, clip: Clip = NO_CLIP, peak: Tensor | None = None) -> Tensor:
        """Clip factors get no gradient."""
        grid = self.grid(x, clip)
        return straight_through(x, self.values(self.codes(x, grid), grid).to(x.dtype))

    def store(self, codes: Tensor, grid: Grid) -> dict[str, Tensor]:
        """``packed`` and ``scale``."""
        groups = num_groups(codes.shape[1], self.group_size)
        scale = e8m0_at_most(grid[0]).reshape(len(codes), groups)
        return {"packed": pack_fitting(codes, self.bits), "scale": scale}

    def restore(self, tensors: dict[str, Tensor], columns: int) -> tuple[Tensor, Grid]:
        """Codes and scales."""
        codes = unpack(tensors["packed"], self.bits, columns)
        return codes, (e8m0_values(tensors["scale"].reshape(-1, 1)),)

    def stored_shapes(self, rows: int, columns: int) -> StoredShapes:
        """Both parts lie row by row."""
        return {
            "packed": ((rows, packed_width(columns, self.bits)), torch.uint8),
            "scale": ((rows, num_groups(columns, self.group_size)), torch.uint8),
        }

    def fitted_to(self, columns: int) -> "MXFP4":
        """With the largest group that divides ``columns``."""
        return replace(self, group_size=largest_divisor(columns, self.group_size))
