"""The Triton kernels for packed 4-bit weights.

They read the packed weight as it lies in the file, take it apart in registers and multiply int8 by
int8 on tensor cores, into int32: sums are exact. Zero points, scales and bias come last, by the
same float32 operations in the same order as the definition. Activations have up to 8 bits.

Up to 16 tokens wait for the weight to arrive. There a program takes few outputs, so that many of
them read at once, and all of their inputs, so that a linear is one launch. With more tokens a first
kernel separates the activations of even and odd inputs, which a packed byte pairs.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from duquant.ops.affine import AffineGrid
from duquant.ops.packed_product import LARGEST_ACTIVATION, linear_in_steps, product_in_steps
from duquant.ops.packing import pack
from duquant.ops.quantized_tokens import GRID_BYTES, encode_tokens
from duquant.ops.triton_kernels.presence import runs_here

FEW_ROWS = 16
"""Tokens that a tile holds at least, which is as few as tensor cores multiply."""
FEW_OUTPUTS, FEW_BLOCK = 16, 256
"""The fewest outputs that tensor cores multiply: 4,096 of them are 256 programs."""
LAID_OUT_ROWS, LAID_OUT_BLOCK = 8, 256
LARGEST_SIGNED = 127
BLOCK = 64
"""Bytes of a packed row at a time; there are twice as many inputs."""
WRITTEN = (torch.float32, torch.bfloat16, torch.float16)


class _Rows(NamedTuple):
    """What belongs to the outputs, float32 ``(out,)`` each."""

    scale: Tensor
    zero: Tensor
    sums: Tensor
    bias: Tensor | None


def packed_product(q: Tensor, packed: Tensor, largest: int) -> Tensor:
    """:func:`duquant.ops.packed_product.product_in_steps` on a GPU."""
    if not _takes(q.shape[1], packed, largest):
        return product_in_steps(q, packed, largest)
    product = q.new_empty(q.shape[0], packed.shape[0], dtype=torch.float32)
    _run(q, packed, None, product, largest)
    return product


def packed_linear(
    tokens: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    largest: int,
    dtype: torch.dtype,
) -> Tensor:
    """:func:`duquant.ops.packed_product.linear_in_steps` on a GPU."""
    if not _takes(tokens.shape[1] - GRID_BYTES, packed, largest):
        return linear_in_steps(tokens, packed, scale, zero, sums, bias, largest, dtype)
    written = dtype if dtype in WRITTEN else torch.float32
    output = tokens.new_empty(tokens.shape[0], packed.shape[0], dtype=written)
    rows = [None if row is None else row.float().contiguous() for row in (scale, zero, sums, bias)]
    assert all(row is None or row.shape == (packed.shape[0],) for row in rows)
    _run(tokens, packed, _Rows(*rows), output, largest)  # type: ignore[arg-type]
    return output.to(dtype)


@functools.cache
def is_available() -> bool:
    """Whether this machine has the kernels; compiles them when asked for the first time."""
    return runs_here(_is_right)


def _takes(columns: int, packed: Tensor, largest: int) -> bool:
    is_fitting = 2 * packed.shape[1] == columns > 0 and 1 <= largest <= LARGEST_ACTIVATION
    return is_fitting and is_available()


def _run(tokens: Tensor, packed: Tensor, rows: _Rows | None, output: Tensor, largest: int) -> None:
    if not output.numel():
        return
    assert tokens.dtype == packed.dtype == torch.uint8
    tokens, packed = tokens.contiguous(), packed.contiguous()
    if tokens.data_ptr() % 2:
        tokens = tokens.clone()
    run = _few_tokens if len(tokens) <= FEW_ROWS else _many_tokens
    with torch.cuda.device_of(tokens):
        run(tokens.view(torch.int16), packed, rows, output, largest > LARGEST_SIGNED)


def _few_tokens(
    pairs: Tensor, packed: Tensor, rows: _Rows | None, output: Tensor, is_wide: bool
) -> None:
    from duquant.ops.triton_kernels.source import int4 as source

    (count, stride), (out, half) = pairs.shape, packed.shape
    source.few_tokens[(-(-out // FEW_OUTPUTS),)](
        *(pairs, packed, *(rows or [None] * 4), output, count, out, half, stride),
        HAS_GRID=rows is not None, HAS_BIAS=rows is not None and rows.bias is not None,
        IS_WIDE=is_wide, OUTPUTS=FEW_OUTPUTS, ROWS=FEW_ROWS, BLOCK=FEW_BLOCK,
        num_warps=2, num_stages=4, enable_fp_fusion=False,
    )  # fmt: skip


def _many_tokens(
    pairs: Tensor, packed: Tensor, rows: _Rows | None, output: Tensor, is_wide: bool
) -> None:
    from duquant.ops.triton_kernels.source import int4 as source

    (count, stride), (out, half) = pairs.shape, packed.shape
    width = -(-half // BLOCK) * BLOCK
    planes = pairs.new_empty(count, 2, width, dtype=torch.int8)
    grids = pairs.new_empty(3, count, dtype=torch.float32)
    source.lay_out_tokens[(-(-count // LAID_OUT_ROWS),)](
        *(pairs, planes, grids, count, stride, half, width),
        HAS_GRID=rows is not None, IS_WIDE=is_wide, ROWS=LAID_OUT_ROWS, BLOCK=LAID_OUT_BLOCK,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    tokens, outputs, warps = _tile(count)
    source.many_tokens[-(-count // tokens), -(-out // outputs)](
        *(planes, grids, packed, *(rows or [None] * 4), output, count, out, half, width),
        HAS_GRID=rows is not None, HAS_BIAS=rows is not None and rows.bias is not None,
        IS_WIDE=is_wide, OUTPUTS=outputs, ROWS=tokens, BLOCK=BLOCK,
        num_warps=warps, num_stages=3, enable_fp_fusion=False,
    )  # fmt: skip


def _tile(rows: int) -> tuple[int, int, int]:
    """Tokens and outputs of a tile, and its warps."""
    return (64, 64, 4) if rows <= 128 else (128, 128, 8)


def _is_right(device: torch.device) -> bool:
    """Compare small linears, integers at their largest, with their definition, bit by bit."""
    columns, out = 2 * FEW_BLOCK + 18, 70
    counted = torch.arange(columns, device=device)
    w = torch.full((out, columns), 15, dtype=torch.uint8, device=device)
    w[1] = counted.remainder(15)
    packed = pack(w, 4)
    ones = torch.ones(out, dtype=torch.float32, device=device)
    rows = 0.37 * ones, -2 * ones, 31 * ones, 5.5 * ones
    kinds = [
        (count, largest)
        for largest in (LARGEST_SIGNED, LARGEST_ACTIVATION)
        for count in (130, 20, 3)
    ]
    for count, largest in kinds:  # a kernel, or a tile of one, each
        q = torch.full((count, columns), largest, dtype=torch.uint8, device=device)
        q[1::2] = counted.remainder(largest).to(torch.uint8)
        zero = torch.arange(count, device=device).float().unsqueeze(1)
        tokens = encode_tokens(q, AffineGrid(torch.full_like(zero, 0.7), zero))
        output = q.new_empty(count, out, dtype=torch.float32)
        _run(tokens, packed, _Rows(*rows), output, largest)
        expected = linear_in_steps(tokens, packed, *rows, largest, torch.float32)
        if not torch.equal(output, expected):
            return False
    _run(q, packed, None, output, largest)
    return torch.equal(output, product_in_steps(q, packed, largest))
