"""Dynamic quantization of activations: every token chooses its own scale and zero point."""

import torch
from torch import Tensor, nn

from duquant.ops.affine import UNQUANTIZED_BITS, AffineGrid, affine_grid, quantize
from duquant.ops.fake_quantize import fake_quantize_rows
from duquant.ops.kernels import rows
from duquant.ops.quantized_tokens import encode_tokens


class ActivationQuantizer(nn.Module):
    """Fake-quantize the last dimension of a tensor, token by token.

    Args:
        bits: width of the integers; 16 passes the input through.
        clip_ratio: factor on every token's maximum and minimum.
        symmetric: centre the range on zero.
    """

    def __init__(self, bits: int, clip_ratio: float, *, symmetric: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.clip_ratio = clip_ratio
        self.symmetric = symmetric

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of ``x`` are kept; the arithmetic runs in float32 or wider."""
        if self.bits >= UNQUANTIZED_BITS:
            return x
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return fake_quantize_rows(
            wide,
            self.bits,
            symmetric=self.symmetric,
            clip_high=self.clip_ratio,
            clip_low=self.clip_ratio,
        ).to(x.dtype)

    def integers(self, x: Tensor) -> tuple[Tensor, AffineGrid]:
        """The same quantization before it is undone: integers as floats, and every row's grid."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        grid = affine_grid(
            wide,
            self.bits,
            symmetric=self.symmetric,
            clip_high=self.clip_ratio,
            clip_low=self.clip_ratio,
        )
        return quantize(wide, grid, self.bits), grid

    def encoded(self, x: Tensor) -> Tensor:
        """The same as bytes, ``(..., width + 6)``: see :mod:`duquant.ops.quantized_tokens`."""
        if rows.can_encode(x, self.bits):
            tokens: Tensor = rows.encode_rows(x, self.bits, self.clip_ratio, self.symmetric)
            return tokens
        return encode_tokens(*self.integers(x))

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"bits={self.bits}, clip_ratio={self.clip_ratio}, symmetric={self.symmetric}"
