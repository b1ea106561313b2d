"""Dynamic quantization of activations: every token chooses its own grid."""

import torch
from torch import Tensor

from duquant.formats.integer import Integer
from duquant.formats.number_format import Clip, Grid, NumberFormat, split_rows
from duquant.formats.row_bytes import decode_rows, encode_rows
from duquant.nn.clipping import ClipFactors
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.ops.precision import widen
from duquant.ops.quantized_tokens import quantize_tokens
from duquant.transforms.exact_buffers import ExactBuffers

BYTE_BITS = 8
"""Widest integers that a kernel quantizes to on the way."""


class ActivationQuantizer(ExactBuffers):
    """Fake-quantize the last dimension of a tensor, token by token.

    A format whose grids depend on the largest magnitude of all tokens takes it from ``peak``, a
    calibrated constant, so that no token's result depends on its neighbours; before calibration, on
    the tokens it is given.

    Args:
        form: number format.
        clip_ratio: factor on every token's maximum and minimum.
    """

    EXACT = ("peak", "clip_ends")
    peak: Tensor
    clip_ends: Tensor

    def __init__(self, form: NumberFormat, clip_ratio: float = 1.0) -> None:
        super().__init__()
        self.form = form
        self.ratio = clip_ratio
        self.factors: ClipFactors | None = None
        self.hold_clip_ends(torch.zeros(0, dtype=torch.float32, device="cpu"))
        self.hold_peak(torch.zeros(0, dtype=torch.float32, device="cpu"))

    @property
    def is_quantized(self) -> bool:
        """Whether anything is rounded."""
        return self.form.bits < UNQUANTIZED_BITS

    def hold_clip_ends(self, ends: Tensor) -> None:
        """Take over learned factors on maximum and minimum, float32 ``(2,)``, as constants.

        One without entries means that both are the recipe's ratio.
        """
        self.factors = None
        self.register_buffer("clip_ends", ends, persistent=ends.numel() > 0)

    def hold_peak(self, peak: Tensor) -> None:
        """Take over a calibrated peak, float32 ``(1,)``; one without entries means "none"."""
        self.register_buffer("peak", peak, persistent=peak.numel() > 0)

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of ``x`` are kept; formats compute in float32 or wider."""
        if not self.is_quantized:
            return x
        split = split_rows(x, self.form.group_size)
        return self.form.fake_quantize(split, self._clip(split), self._peak()).reshape(x.shape)

    def codes(self, x: Tensor) -> tuple[Tensor, Grid]:
        """The same before it is undone: codes ``(..., width)`` and the grid of their groups."""
        wide = widen(x)
        split = split_rows(wide, self.form.group_size)
        grid = self.form.grid(split, self._clip(split), self._peak())
        return self.form.codes(split, grid).reshape(x.shape), grid

    def encoded(self, x: Tensor) -> Tensor:
        """Integers as bytes, ``(..., width + 6)``: see :mod:`duquant.ops.quantized_tokens`."""
        bits, ratio, ends, symmetric = self.token_grid()
        return quantize_tokens(x, bits, clip_ratio=ratio, clip_ends=ends, symmetric=symmetric)

    def token_grid(self) -> tuple[int, float, Tensor | None, bool]:
        """Bits, clip ratio, clip ends and symmetry, as the operators for tokens take them."""
        form = self.form
        assert isinstance(form, Integer)
        ends = self.clip_ends if self.clip_ends.numel() else None
        return form.bits, self.ratio, ends, form.symmetric

    def fixed_grid(self) -> tuple[int, float, bool] | None:
        """Bits, clip ratio and symmetry, where these are all that decides a row's grid."""
        form = self.form
        is_plain = isinstance(form, Integer) and form.group_size is None and form.bits <= BYTE_BITS
        if not is_plain or self.factors is not None or self.clip_ends.numel():
            return None
        assert isinstance(form, Integer)
        return form.bits, self.ratio, form.symmetric

    def encoded_rows(self, x: Tensor) -> Tensor:
        """Any format's codes and scales as bytes: see :mod:`duquant.formats.row_bytes`."""
        wide = widen(x)
        return encode_rows(self.form, wide, self._clip(), self._peak())

    def decoded_rows(self, encoded: Tensor, width: int) -> Tensor:
        """Undo :meth:`encoded_rows`: float values ``(..., width)``."""
        return decode_rows(self.form, encoded, width, self._peak())

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"{self.form}, clip_ratio={self.ratio}"

    def _clip(self, rows: Tensor | None = None) -> Clip:
        """Clip factors, numbers or scalars; with ``rows (..., columns)`` one for each of them."""
        if self.factors is None and not self.clip_ends.numel():
            return Clip(self.ratio, self.ratio)
        moves_zero_point = False
        if self.factors is None:
            high, low = self.clip_ends
        else:
            high, low, moves_zero_point = self.factors()
        if rows is None:
            return Clip(high, low)
        shape = (*rows.shape[:-1], 1)
        return Clip(high.expand(shape), low.expand(shape), moves_zero_point)

    def _peak(self) -> Tensor | None:
        return self.peak if self.peak.numel() else None
