"""A linear layer with a quantized weight.

The weight is held in floating point, already smoothed, rotated and permuted; it is fake-quantized
with the current clip factors at every forward pass while those are being learned, and once and for
all when the block is finished (:meth:`QuantLinear.freeze`). The input arrives transformed and
quantized from the site before it; where the linear is its site's only reader it owns the site.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from duquant.nn.clipping import ClipFactors, FixedClip
from duquant.nn.site import SiteTransform
from duquant.ops.affine import (
    UNQUANTIZED_BITS,
    AffineGrid,
    affine_grid,
    quantize,
    split_groups,
)
from duquant.ops.fake_quantize import fake_quantize_rows


class QuantLinear(nn.Module):
    """``y = x · quantized(W)ᵀ + bias``.

    Args:
        weight: float weight ``(out, in)``.
        bias: ``(out,)`` or ``None``; never quantized.
        clip: clip factors of the weight's rows.
        bits: bits of the weight; 16 leaves it alone.
        symmetric: centre every row's range on zero.
        group_size: inputs that share a scale, a divisor of ``in`` (default: all).
        zero_point_gradient: let the clip factors learn through the zero points too.
        site: transform of the input, if this linear is its only reader.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        clip: ClipFactors | FixedClip,
        *,
        bits: int,
        symmetric: bool = False,
        group_size: int | None = None,
        zero_point_gradient: bool = False,
        site: SiteTransform | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.clip = clip
        self.bits = bits
        self.symmetric = symmetric
        self.group_size = group_size
        self.zero_point_gradient = zero_point_gradient
        self.site = site
        self.is_frozen = False

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)`` in the dtype of ``x``."""
        if self.site is not None:
            x = self.site(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.quantized_weight().to(x.dtype), bias)

    def quantized_weight(self) -> Tensor:
        """The dequantized weight ``(out, in)``, differentiable in the clip factors."""
        if self.is_frozen or self.bits >= UNQUANTIZED_BITS:
            return self.weight
        high, low = self.clip()
        rows = split_groups(self.weight, self.group_size)
        quantized = fake_quantize_rows(
            rows,
            self.bits,
            symmetric=self.symmetric,
            clip_high=high,
            clip_low=low,
            zero_point_gradient=self.zero_point_gradient,
        )
        return quantized.reshape(self.weight.shape)

    @torch.no_grad()
    def integers(self) -> tuple[Tensor, AffineGrid]:
        """Integers ``(rows, columns)`` as floats and their grid ``(rows, 1)``, rows by group."""
        assert not self.is_frozen, "the weight of a frozen layer is quantized already"
        rows = split_groups(self.weight, self.group_size)
        high, low = self.clip()
        grid = affine_grid(rows, self.bits, symmetric=self.symmetric, clip_high=high, clip_low=low)
        return quantize(rows, grid, self.bits), grid

    @torch.no_grad()
    def freeze(self) -> None:
        """Replace the weight by its quantized values, for good."""
        self.weight = self.quantized_weight().detach()
        self.is_frozen = True

    def extra_repr(self) -> str:
        """Show the sizes."""
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, bits={self.bits}, group_size={self.group_size}"
