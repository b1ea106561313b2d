"""tmp"""
from dataclasses import dataclass, replace
from typing import ClassVar
import torch
from torch import Tensor
from duquant.formats.number_format import NO_CLIP, Clip, Grid, StoredShapes, largest_divisor
from duquant.ops.affine import AffineGrid, affine_grid, dequantize, quantize
from duquant.ops.fake_quantize import fake_quantize_rows
from duquant.ops.packing import integer_dtype, pack, packed_width, unpack

@dataclass(frozen=True)
class Integer:
    """tmp"""
    bits: int = 4
    symmetric: bool = False
    group_size: int | None = None
    name: ClassVar[str] = "integer"
    learns_clip_factors: ClassVar[bool] = True
    needs_peak: ClassVar[bool] = False
    def __post_init__(self):
        if not 2 <= self.bits <= 15: raise ValueError(f"bits is {self.bits}; it must be 2 to 16 (16 means unquantized)")
        if self.group_size is not None and self.group_size < 1: raise ValueError(f"group_size is {self.group_size}; it must be at least 1")
    def grid(self, x, clip=NO_CLIP, peak=None):
        return tuple(affine_grid(x, self.bits, symmetric=self.symmetric, clip_high=clip.high, clip_low=clip.low))
    def codes(self, x, grid):
        return quantize(x, AffineGrid(*grid), self.bits).to(integer_dtype(self.bits))
    def values(self, codes, grid):
        return dequantize(codes.to(grid[0].dtype), AffineGrid(*grid))
    def fake_quantize(self, x, clip=NO_CLIP, peak=None):
        return fake_quantize_rows(x, self.bits, symmetric=self.symmetric, clip_high=clip.high, clip_low=clip.low, zero_point_gradient=clip.moves_zero_point)
    def store(self, codes, grid):
        rows = codes.shape[0]
        return {"packed": pack(codes, self.bits), "scale": grid[0].reshape(rows, -1).float(), "zero": grid[1].reshape(rows, -1).to(torch.int16)}
    def restore(self, tensors, columns):
        return unpack(tensors["packed"], self.bits, columns), (tensors["scale"].reshape(-1, 1), tensors["zero"].reshape(-1, 1).float())
    def stored_shapes(self, rows, columns):
        groups = columns // (self.group_size or columns)
        return {"packed": ((rows, packed_width(columns, self.bits)), torch.uint8), "scale": ((rows, groups), torch.float32), "zero": ((rows, groups), torch.int16)}
    def fitted_to(self, columns):
        return self if self.group_size is None else replace(self, group_size=largest_divisor(columns, self.group_size))
