"""Quantized activations as bytes: a token's integers, its scale and its zero point in one row.

Between two modules an activation travels as a tensor, and modules we do not own look at its shape
(attention splits heads by ``shape[:-1]``, a cache concatenates along the tokens). A quantized token
has three parts, so they are laid side by side as bytes:

    | integers, 1 byte each or packed | scale, float32 | zero point, int16 |

Such a tensor is ``uint8``, and no float activation ever is: the dtype says what it holds. Slicing,
concatenating or reordering tokens, heads and batches works on it as on any tensor.

Quantizing a float activation and laying it out is one operator, ``duquant::quantize_tokens``; its
kernels are listed in :mod:`duquant.ops.kernels.table`.
"""

import torch
from torch import Tensor

from duquant.ops.affine import AffineGrid, affine_grid, quantize
from duquant.ops.kernel_presence import call, is_inlined
from duquant.ops.packing import pack_fitting, packed_width, unpack
from duquant.ops.precision import widen

SCALE_BYTES, ZERO_BYTES = torch.float32.itemsize, torch.int16.itemsize
GRID_BYTES = SCALE_BYTES + ZERO_BYTES


def quantize_tokens(
    x: Tensor,
    bits: int,
    *,
    clip_ratio: float = 1.0,
    clip_ends: Tensor | None = None,
    symmetric: bool,
) -> Tensor:
    """Quantize every token by itself and lay it out as :func:`encode_tokens` does.

    Args:
        x: float ``(..., width)``; the arithmetic runs in float32 or wider.
        bits: width of the integers, at most 8; each takes a byte.
        clip_ratio: factor on both ends of every token's range.
        clip_ends: factors on maximum and minimum, ``(2,)``, in the place of the ratio.
        symmetric: centre the range on zero.

    Returns:
        ``uint8 (..., width + 6)``.
    """
    if is_inlined("quantize_tokens", x.device):
        return quantize_tokens_in_steps(x, bits, clip_ratio, clip_ends, symmetric)
    tokens: Tensor = call(quantized_tokens, x, bits, clip_ratio, clip_ends, symmetric)
    return tokens


def quantize_tokens_in_steps(
    x: Tensor, bits: int, clip_ratio: float, clip_ends: Tensor | None, symmetric: bool
) -> Tensor:
    """The definition of the operator; arguments are those of :func:`quantize_tokens`."""
    x = widen(x)
    high, low = (clip_ratio, clip_ratio) if clip_ends is None else clip_ends
    grid = affine_grid(x, bits, symmetric=symmetric, clip_high=high, clip_low=low)
    return encode_tokens(quantize(x, grid, bits), grid)


quantized_tokens = torch.library.custom_op(
    "duquant::quantize_tokens", quantize_tokens_in_steps, mutates_args=()
)


@quantized_tokens.register_fake
def _(x: Tensor, bits: int, clip_ratio: float, clip_ends: Tensor | None, symmetric: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] + GRID_BYTES, dtype=torch.uint8)


def encode_tokens(q: Tensor, grid: AffineGrid, bits: int | None = None) -> Tensor:
    """Lay integers and grid side by side.

    Args:
        q: integers ``0 … 255``, fewer where they are packed, shape ``(..., width)``, any dtype.
        grid: scale and zero point of every row, ``(..., 1)``.
        bits: pack the integers at this width; ``None`` keeps a byte for each.

    Returns:
        ``uint8`` of shape ``(..., width or packed width + 6)``.
    """
    integers = q.to(torch.uint8)
    if bits is not None:
        integers = pack_fitting(integers.flatten(0, -2), bits).unflatten(0, q.shape[:-1])
    scale = grid.scale.float().contiguous().view(torch.uint8)
    zero = grid.zero.to(torch.int16).contiguous().view(torch.uint8)
    return torch.cat([integers, scale, zero], dim=-1)


def decode_tokens(
    tokens: Tensor, width: int | None = None, bits: int | None = None
) -> tuple[Tensor, AffineGrid]:
    """Undo :func:`encode_tokens`.

    Args:
        tokens: encoded rows ``(..., bytes)``.
        width: integers per row; needed where they are packed.
        bits: their packed width; ``None`` for a byte each.

    Returns:
        Integers ``uint8 (..., width)`` and their grid, as float32 ``(..., 1)``.
    """
    end = tokens.shape[-1] - GRID_BYTES
    integers = tokens[..., :end]
    if bits is not None:
        assert width is not None
        assert end == packed_width(width, bits)
        integers = unpack(integers.flatten(0, -2), bits, width).unflatten(0, tokens.shape[:-1])
    scale = _own_memory(tokens[..., end : end + SCALE_BYTES]).view(torch.float32)
    zero = _own_memory(tokens[..., end + SCALE_BYTES :]).view(torch.int16)
    return integers, AffineGrid(scale, zero.float())


def _own_memory(part: Tensor) -> Tensor:
    """A copy with the strides of its shape; a view of several bytes as one number needs that."""
    return part.clone(memory_format=torch.contiguous_format)
