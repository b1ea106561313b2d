"""NVFP4: four-bit floats in groups of 16 with scales of eight bits and one scale for all.

NVIDIA's variant of microscaling: E2M1 numbers (:mod:`duquant.ops.e2m1`) in groups of 16, whose
scale is not a power of two but an E4M3 number (:mod:`duquant.ops.e4m3`), 4.5 bits per entry. E4M3
spans little, so a float32 for the whole tensor puts its largest group at E4M3's upper end:

    g     = peak / (6 · 448)         peak: largest magnitude of the tensor
    scale = E4M3(amax / 6 / g)       amax: largest magnitude of the group
    x     ≈ E2M1 · scale · g

Where tokens arrive one by one the tensor's peak is not known; it is calibrated, and what exceeds it
saturates. The scale is rounded to four significant bits, which hides the gradient of a clip factor.
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
from duquant.ops import e2m1, e4m3
from duquant.ops.packing import pack_fitting, packed_width, unpack
from duquant.ops.precision import widen
from duquant.ops.straight_through import straight_through
from duquant.ops.value_rules import BYTES, POSITIVE_FLOAT32, ValueRule, in_range

NVIDIA_GROUP = 16
SMALLEST_GLOBAL_SCALE = 2.0**-116
"""Times the smallest E4M3 number it is still a normal float32."""


@dataclass(frozen=True)
class NVFP4:
    """E2M1 numbers times an E4M3 scale per group, times a float32 for the whole tensor.

    The grid is both scales, float32, the tensor's repeated for every row. Stored: ``packed``, the
    first of two entries in the low half of a byte; ``scale``, the bits of E4M3 numbers as
    ``uint8 (rows, groups)``; ``global_scale``, float32 ``(1,)``. compressed-tensors calls them
    ``weight_packed``, ``weight_scale`` (as ``float8_e4m3fn``) and ``weight_global_scale``, and that
    last one is the reciprocal of ours, ``6 · 448 / peak``.

    Args:
        group_size: consecutive entries that share a scale: 16, fewer only where 16 does not divide
            a row.
    """

    name: ClassVar[str] = "nvfp4"
    learns_clip_factors: ClassVar[bool] = False
    needs_peak: ClassVar[bool] = True
    clip_ratios: ClassVar[Sequence[float]] = [1.0, *(1.05 - 0.025 * step for step in range(15))]
    stored_rules: ClassVar[Mapping[str, ValueRule]] = {
        "packed": BYTES,
        "scale": in_range(torch.uint8, 1, 126),  # positive E4M3 numbers; 127 is NaN
        "global_scale": POSITIVE_FLOAT32,
    }
    bits: ClassVar[int] = 4

    group_size: int = NVIDIA_GROUP

    def __post_init__(self) -> None:
        """Check the number."""
        if not 1 <= self.group_size <= NVIDIA_GROUP:
            raise ValueError(
                f"group_size is {self.group_size}; nvfp4 has groups of {NVIDIA_GROUP}, or fewer "
                f"where that does not divide a row"
            )

    @torch.no_grad()
    def grid(self, x: Tensor, clip: Clip = NO_CLIP, peak: Tensor | None = None) -> Grid:
        """Scale and global scale; clip factors do not touch the peak."""
        wide = widen(x)
        if peak is None:
            peak = wide.abs().amax() if wide.numel() else wide.new_zeros(())
        global_scale = _global_scale(peak)
        scale = e4m3.e4m3_scales(largest_magnitude(wide, clip) / e2m1.LARGEST / global_scale)
        return scale, global_scale.expand_as(scale)

    def codes(self, x: Tensor, grid: Grid) -> Tensor:
        """E2M1 bit patterns."""
        scale, global_scale = grid
        return e2m1.e2m1_codes(widen(x) / (scale * global_scale))

    def values(self, codes: Tensor, grid: Grid) -> Tensor:
        """E2M1 numbers times both scales, float32."""
        scale, global_scale = grid
        return e2m1.e2m1_values(codes) * (scale * global_scale)

    def fake_quantize(self, x: Tensor, clip: Clip = NO_CLIP, peak: Tensor | None = None) -> Tensor:
        """Clip factors get no gradient."""
        grid = self.grid(x, clip, peak)
        return straight_through(x, self.values(self.codes(x, grid), grid).to(x.dtype))

    def store(self, codes: Tensor, grid: Grid) -> dict[str, Tensor]:
        """``packed``, ``scale`` and ``global_scale``; at least one row, for the last."""
        scale, global_scale = grid
        groups = num_groups(codes.shape[1], self.group_size)
        return {
            "packed": pack_fitting(codes, self.bits),
            "scale": e4m3.e4m3_bytes(scale).reshape(len(codes), groups),
            "global_scale": global_scale.reshape(-1)[0].reshape(1).clone(),
        }

    def restore(self, tensors: dict[str, Tensor], columns: int) -> tuple[Tensor, Grid]:
        """Codes and both scales."""
        codes = unpack(tensors["packed"], self.bits, columns)
        scale = e4m3.e4m3_values(tensors["scale"]).reshape(-1, 1)
        return codes, (scale, tensors["global_scale"].expand_as(scale))

    def stored_shapes(self, rows: int, columns: int) -> StoredShapes:
        """Codes and their scales lie row by row, the global scale belongs to all rows."""
        return {
            "packed": ((rows, packed_width(columns, self.bits)), torch.uint8),
            "scale": ((rows, num_groups(columns, self.group_size)), torch.uint8),
            "global_scale": ((1,), torch.float32),
        }

    def fitted_to(self, columns: int) -> "NVFP4":
        """With the largest group that divides ``columns``."""
        return replace(self, group_size=largest_divisor(columns, self.group_size))


def _global_scale(peak: Tensor) -> Tensor:
    """The scale of a tensor whose largest magnitude is ``peak``, float32; at most finite."""
    finite = peak.float().clamp(max=torch.finfo(torch.float32).max)
    return (finite / (e2m1.LARGEST * e4m3.LARGEST)).clamp(min=SMALLEST_GLOBAL_SCALE)
