"""Integers of a few bits with a scale and a zero point: the format of DuQuant and most others.

The arithmetic is :mod:`duquant.ops.affine`; the fake quantization that training runs through has
its gradient written out and, on a CPU, its kernels (:mod:`duquant.ops.fake_quantize`).
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
    num_groups,
)
from duquant.ops.affine import (
    UNQUANTIZED_BITS,
    AffineGrid,
    affine_grid,
    dequantize,
    largest_zero,
    quantize,
)
from duquant.ops.fake_quantize import fake_quantize_rows
from duquant.ops.packing import integer_dtype, pack_fitting, packed_width, unpack
from duquant.ops.precision import widen, widen_on_cpu
from duquant.ops.value_rules import BYTES, POSITIVE_FLOAT32, ValueRule, in_range


@dataclass(frozen=True)
class Integer:
    """Integers ``0 … 2**bits - 1`` with a step and a zero point for every group.

    Stored: ``packed`` at the true width, ``scale`` in float32 and ``zero`` as int16, both
    ``(rows, groups)``.

    Args:
        bits: width, 2 to 15 (16 leaves the tensor alone: that is another format, ``unquantized``).
        symmetric: centre every range on zero.
        group_size: consecutive entries of a row that share a scale (default: all).
    """

    name: ClassVar[str] = "integer"
    learns_clip_factors: ClassVar[bool] = True
    needs_peak: ClassVar[bool] = False
    # Learned factors start at a logit of 4, 0.98.
    clip_ratios: ClassVar[Sequence[float]] = [0.98 - 0.02 * step for step in range(30)]
    bits: int = 4
    symmetric: bool = False
    group_size: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 2 <= self.bits < UNQUANTIZED_BITS:
            raise ValueError(
                f"bits is {self.bits}; it must be 2 to {UNQUANTIZED_BITS} "
                f"({UNQUANTIZED_BITS} means unquantized)"
            )
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}; it must be at least 1")

    @property
    def stored_rules(self) -> Mapping[str, ValueRule]:
        """Zero points are at most :func:`largest_zero`, or symmetric, 2¹⁴ − 1 with 15 bits."""
        limit = largest_zero(self.bits)
        return {
            "packed": BYTES,
            "scale": POSITIVE_FLOAT32,
            "zero": in_range(torch.int16, -limit, max(limit, 2**14)),
        }

    def grid(self, x: Tensor, clip: Clip = NO_CLIP, peak: Tensor | None = None) -> AffineGrid:
        """Scale and zero point, a float, of every row."""
        return affine_grid(
            widen(x),
            self.bits,
            symmetric=self.symmetric,
            clip_high=clip.high,
            clip_low=clip.low,
        )

    def codes(self, x: Tensor, grid: Grid) -> Tensor:
        """The integers."""
        with torch.no_grad():
            return quantize(widen(x), AffineGrid(*grid), self.bits).to(integer_dtype(self.bits))

    def values(self, codes: Tensor, grid: Grid) -> Tensor:
        """``(codes - zero) * scale``."""
        scale, zero = grid
        return dequantize(codes.to(scale.dtype), AffineGrid(scale, zero))

    def fake_quantize(self, x: Tensor, clip: Clip = NO_CLIP, peak: Tensor | None = None) -> Tensor:
        """Differentiable in the clip factors too; clamped entries pass no gradient."""
        quantized = fake_quantize_rows(
            widen_on_cpu(x),  # elsewhere half precision is computed in float32 without a copy
            self.bits,
            symmetric=self.symmetric,
            clip_high=clip.high,
            clip_low=clip.low,
            zero_point_gradient=clip.moves_zero_point,
        )
        return quantized.to(x.dtype)

    def store(self, codes: Tensor, grid: Grid) -> dict[str, Tensor]:
        """``packed``, ``scale`` and ``zero``."""
        groups = num_groups(codes.shape[1], self.group_size)
        scale, zero = (part.reshape(len(codes), groups) for part in grid)
        return {
            "packed": pack_fitting(codes, self.bits),
            "scale": scale.float(),
            "zero": zero.to(torch.int16),
        }

    def restore(self, tensors: dict[str, Tensor], columns: int) -> tuple[Tensor, AffineGrid]:
        """Integers and their grid."""
        codes = unpack(tensors["packed"], self.bits, columns)
        scale, zero = (tensors[name].float().reshape(-1, 1) for name in ("scale", "zero"))
        return codes, AffineGrid(scale, zero)

    def stored_shapes(self, rows: int, columns: int) -> StoredShapes:
        """All parts lie row by row."""
        groups = num_groups(columns, self.group_size)
        return {
            "packed": ((rows, packed_width(columns, self.bits)), torch.uint8),
            "scale": ((rows, groups), torch.float32),
            "zero": ((rows, groups), torch.int16),
        }

    def fitted_to(self, columns: int) -> "Integer":
        """With the largest group that divides ``columns``; without groups, itself."""
        if self.group_size is None:
            return self
        return replace(self, group_size=largest_divisor(columns, self.group_size))
