"""Quantization of rows in Triton: of weights and activations in calibration, of tokens in running.

PyTorch passes over a weight some twenty times to quantize it and to learn from it. These kernels
read a row once for its ends and once, from the cache, to quantize it; the gradient reads weight and
gradient once. Scale and zero point are computed between, by the operations of
:mod:`duquant.ops.affine`, each rounded as IEEE says, so values are those that the definition gives
on a processor, to the last bit. (On a GPU PyTorch multiplies by ``1 / (2**bits - 1)`` where it is
asked to divide, so a scale by the definition may differ there in its last bit.) Sums that make up a
gradient are added in another order.

They take float32 and half precision; the operators' definitions do the rest.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from duquant.ops.fake_quantize import Quantized, quantize_in_steps
from duquant.ops.quantized_tokens import GRID_BYTES, quantize_tokens_in_steps
from duquant.ops.rows_gradient import (
    RowGradients,
    gradient_in_steps,
    nothing_for_input,
    per_row,
)
from duquant.ops.triton_kernels.presence import runs_here

BYTE = 8
ENTRIES = 1024
"""Of a tile, in one row or in several short ones."""
TAKEN = (torch.float32, torch.bfloat16, torch.float16)


def fake_quantize_rows(
    x: Tensor,
    clip_high: Tensor | None,
    clip_low: Tensor | None,
    high_ratio: float,
    low_ratio: float,
    bits: int,
    symmetric: bool,
    zero_point_gradient: bool,
) -> Quantized:
    """:func:`duquant.ops.fake_quantize.quantize_in_steps` on a GPU."""
    clips, ratios = (clip_high, clip_low), (high_ratio, low_ratio)
    if not (_takes(x, clips) and is_available()):
        return quantize_in_steps(x, *clips, *ratios, bits, symmetric, zero_point_gradient)
    return _fake_quantize(x, clips, ratios, bits, symmetric)


def quantize_rows_gradient(
    x: Tensor,
    grad: Tensor,
    highest: Tensor,
    lowest: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    wants_input: bool,
) -> RowGradients:
    """:func:`duquant.ops.rows_gradient.gradient_in_steps` on a GPU."""
    rows = highest, lowest, scale, zero
    if not (_takes(x, rows) and grad.dtype == x.dtype and is_available()):
        return gradient_in_steps(x, grad, *rows, bits, wants_input)
    return _gradient(x, grad, rows, bits, wants_input)


def quantize_tokens(
    x: Tensor, bits: int, clip_ratio: float, clip_ends: Tensor | None, symmetric: bool
) -> Tensor:
    """:func:`duquant.ops.quantized_tokens.quantize_tokens_in_steps` on a GPU."""
    is_taken = x.dtype in TAKEN and x.numel() > 0 and bits <= BYTE
    if not (is_taken and is_available()):
        return quantize_tokens_in_steps(x, bits, clip_ratio, clip_ends, symmetric)
    return encode(x, bits, clip_ratio, clip_ends, symmetric)


@functools.cache
def is_available() -> bool:
    """Whether this machine has the kernels; compiles them when asked for the first time."""
    return runs_here(_is_right)


def _takes(x: Tensor, of_rows: Sequence[Tensor | None]) -> bool:
    are_float32 = all(each is None or each.dtype == torch.float32 for each in of_rows)
    return are_float32 and x.dtype in TAKEN and x.numel() > 0


def _fake_quantize(
    x: Tensor,
    clips: tuple[Tensor | None, Tensor | None],
    ratios: tuple[float, float],
    bits: int,
    symmetric: bool,
) -> Quantized:
    from duquant.ops.triton_kernels.source import rows as source

    x, shape = x.contiguous(), (*x.shape[:-1], 1)
    rows, columns, *tile = _tile(x)
    factors = [None if clip is None else clip.expand(shape).contiguous() for clip in clips]
    values, ends = torch.empty_like(x), [per_row(x) for _ in range(4)]
    with torch.cuda.device_of(x):
        source.fake_quantize[(-(-rows // tile[0]),)](
            *(x, *factors, values, *ends, rows, columns, *map(float, ratios)),
            HAS_HIGH=clips[0] is not None, HAS_LOW=clips[1] is not None,
            BITS=bits, SYMMETRIC=symmetric, ROWS=tile[0], COLUMNS=tile[1],
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    highest, lowest, scale, zero = ends
    return values, highest, lowest, scale, zero


def _gradient(
    x: Tensor, grad: Tensor, ends: tuple[Tensor, ...], bits: int, wants_input: bool
) -> RowGradients:
    from duquant.ops.triton_kernels.source import rows as source

    x, grad = x.contiguous(), grad.contiguous()
    rows, columns, *tile = _tile(x)
    to_scale, clamped = per_row(x), per_row(x)
    to_x = torch.empty_like(x) if wants_input else None
    places = [torch.empty_like(to_scale, dtype=torch.int64) for _ in range(2 * wants_input)]
    with torch.cuda.device_of(x):
        source.gradient[(-(-rows // tile[0]),)](
            *(x, grad, *(end.contiguous() for end in ends)),
            *(to_scale, clamped, to_x, *(places or (None, None)), rows, columns),
            WANTS_INPUT=wants_input, BITS=bits, ROWS=tile[0], COLUMNS=tile[1],
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    if to_x is None:
        return to_scale, clamped, *nothing_for_input(x)
    return to_scale, clamped, to_x, places[0], places[1]


def encode(
    x: Tensor, bits: int, clip_ratio: float, clip_ends: Tensor | None, symmetric: bool
) -> Tensor:
    """:func:`quantize_tokens` of what the kernel takes, without looking."""
    from duquant.ops.triton_kernels.source import rows as source

    x = x.contiguous()
    rows, columns, *tile = _tile(x)
    factors = None if clip_ends is None else clip_ends.float().contiguous()
    output = x.new_empty(*x.shape[:-1], columns + GRID_BYTES, dtype=torch.uint8)
    with torch.cuda.device_of(x):
        source.encode[(-(-rows // tile[0]),)](
            *(x, factors, output, rows, columns, float(clip_ratio)),
            HAS_ENDS=factors is not None, BITS=bits, SYMMETRIC=symmetric,
            ROWS=tile[0], COLUMNS=tile[1], num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return output


def _tile(x: Tensor) -> tuple[int, int, int, int]:
    """Rows and columns of ``x`` and of a tile, whose sizes are powers of two."""
    columns = x.shape[-1]
    across = min(ENTRIES, 1 << (columns - 1).bit_length())
    return x.numel() // columns, columns, min(16, ENTRIES // across), across


def _is_right(device: torch.device) -> bool:
    """Compare small rows with their definitions on the CPU: values bit by bit, sums nearly."""
    x = torch.linspace(-3, 5, 3 * 77, dtype=torch.float32, device="cpu").square().view(3, 77) - 4
    grad, clip = x.flip(1), torch.full((3, 1), 0.8, dtype=torch.float32, device="cpu")
    there, at_clip = x.to(device), clip.to(device)
    for given, symmetric in ((x.half(), False), (x, False), (x, True)):
        expected = quantize_in_steps(given, clip, None, 1.0, 0.7, 4, symmetric, False)
        found = _fake_quantize(given.to(device), (at_clip, None), (1.0, 0.7), 4, symmetric)
        if not all(torch.equal(*pair) for pair in zip(_on_cpu(found), expected, strict=True)):
            return False
    sums = _on_cpu(_gradient(there, grad.to(device), found[1:], 4, wants_input=True))
    right = gradient_in_steps(x, grad, *expected[1:], 4, wants_input=True)
    if not all(torch.allclose(*pair, atol=1e-3) for pair in zip(sums, right, strict=True)):
        return False
    tokens = encode(there, 4, 0.9, None, symmetric=False).cpu()
    return torch.equal(tokens, quantize_tokens_in_steps(x, 4, 0.9, None, symmetric=False))


def _on_cpu(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.cpu() for tensor in tensors]
