"""The Triton source of :mod:`duquant.ops.triton_kernels.int4`.

A packed byte holds the weights of an even input (low half) and of the odd one behind it. Taking
them apart in registers gives two tiles, which meet the even and the odd activations in two products
of int8. Weights are the left factor, which tensor cores take from registers.

Activations of 8 bits do not fit int8. ``IS_WIDE`` multiplies them minus 128, which is another sign
of the highest bit, and adds 128 times the sum of the weights, by a product of the same tensor cores
with ones. What lies beyond the inputs counts as activations of 0 in both, so it adds nothing.

Tiles are (outputs, bytes of a packed row) and (bytes, tokens). Every sum of products is an int32,
so that the order of additions does not change a result.
"""

import triton
import triton.language as tl

FLIPPED = tl.constexpr(0x8080 - 0x10000)
"""The highest bits of two bytes."""
NARROWEST = tl.constexpr(16)
"""The fewest columns that tensor cores multiply."""


@triton.jit
def _packed_tile(packed, outputs, at, out, half):
    """Bytes ``(outputs, bytes)``; 0 where there are none."""
    inside = (outputs < out)[:, None] & (at < half)[None, :]
    return tl.load(packed + outputs.to(tl.int64)[:, None] * half + at[None, :], inside, other=0)


@triton.jit
def _apart(pair, IS_WIDE: tl.constexpr):
    """Even and odd activations of 16-bit numbers as int8, minus 128 where they are wide."""
    if IS_WIDE:
        pair ^= FLIPPED
    return pair.to(tl.int8), (pair >> 8).to(tl.int8)


@triton.jit
def _added(pair):
    """The sum of both activations of 16-bit numbers, int32."""
    return ((pair & 255) + ((pair >> 8) & 255)).to(tl.int32)


@triton.jit
def _multiply(total, of_weights, weights, even, odd, IS_WIDE: tl.constexpr):
    """Add the products of packed weights with activations ``(bytes, tokens)``.

    Where activations are wide, every column of ``of_weights`` takes the sum of the weights.
    """
    low = ((weights & 15).to(tl.int8) - 8).to(tl.int8)
    high = ((weights >> 4).to(tl.int8) - 8).to(tl.int8)
    total = tl.dot(low, even, total, out_dtype=tl.int32)
    total = tl.dot(high, odd, total, out_dtype=tl.int32)
    if IS_WIDE:
        ones = tl.full((weights.shape[1], NARROWEST), 1, tl.int8)
        of_weights = tl.dot((low + high).to(tl.int8), ones, of_weights, out_dtype=tl.int32)
    return total, of_weights


@triton.jit
def _product(total, of_weights, IS_WIDE: tl.constexpr):
    """The exact sums of products as float32."""
    if IS_WIDE:
        total += 128 * tl.max(of_weights, 1)[:, None]
    return total.to(tl.float32)


@triton.jit
def _token_grid(pairs, rows, stride, half, inside):
    """Scale and zero point behind the integers of a token, which lies as 16-bit numbers."""
    behind = pairs + rows.to(tl.int64) * stride + half
    low = tl.load(behind, inside, other=0).to(tl.int32) & 0xFFFF
    high = tl.load(behind + 1, inside, other=0).to(tl.int32) << 16
    zero = tl.load(behind + 2, inside, other=0).to(tl.float32)
    return (low | high).to(tl.float32, bitcast=True), zero


@triton.jit
def finished(product, token_scale, token_zero, token_sum, scale, zero, weight_sum):
    """The formula of :mod:`duquant.ops.integer_product`, rounded where its definition rounds."""
    correction = token_zero * weight_sum + token_sum * zero
    return (product - correction) * scale * token_scale


@triton.jit(do_not_specialize=["rows"])
def lay_out_tokens(
    pairs, planes, grids, rows, stride, half, width,
    HAS_GRID: tl.constexpr, IS_WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Even and odd activations of a token side by side, padded with zeros; scale, zero and sum.

    Args:
        pairs: int16, two activations each; a row every ``stride``.
        planes: int8 ``(rows, 2, width)``.
        grids: float32 ``(3, rows)``, where ``HAS_GRID``.
        rows: tokens.
        stride: of the rows of ``pairs``.
        half: pairs of a row.
        width: of a plane.
        HAS_GRID: whether rows are encoded tokens.
        IS_WIDE: whether activations exceed 127.
        ROWS: tokens at a time.
        BLOCK: pairs at a time.
    """
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_token = token < rows
    source = pairs + token.to(tl.int64)[:, None] * stride
    target = planes + token.to(tl.int64)[:, None] * 2 * width
    total = tl.zeros((ROWS,), dtype=tl.int32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)[None, :]
        pair = tl.load(source + at, is_token[:, None] & (at < half), other=0)
        even, odd = _apart(pair, IS_WIDE)
        inside = is_token[:, None] & (at < width)
        tl.store(target + at, even, inside)
        tl.store(target + width + at, odd, inside)
        total += tl.sum(_added(pair), 1)
    if HAS_GRID:
        scale, zero = _token_grid(pairs, token, stride, half, is_token)
        tl.store(grids + token, scale, is_token)
        tl.store(grids + rows + token, zero, is_token)
        tl.store(grids + 2 * rows + token, total.to(tl.float32), is_token)


@triton.jit(do_not_specialize=["rows"])
def many_tokens(
    planes, grids, packed, scale, zero, sums, bias, output, rows, out, half, width,
    HAS_GRID: tl.constexpr, HAS_BIAS: tl.constexpr, IS_WIDE: tl.constexpr,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile ``(ROWS, OUTPUTS)`` of the result, from tokens as :func:`lay_out_tokens` lays them."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_token, is_channel = token < rows, channel < out
    source = planes + token.to(tl.int64)[None, :] * 2 * width
    total = tl.zeros((OUTPUTS, ROWS), dtype=tl.int32)
    of_weights = tl.zeros((OUTPUTS, NARROWEST), dtype=tl.int32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        even = tl.load(source + at[:, None], is_token[None, :], other=0)
        odd = tl.load(source + width + at[:, None], is_token[None, :], other=0)
        weights = _packed_tile(packed, channel, at, out, half)
        total, of_weights = _multiply(total, of_weights, weights, even, odd, IS_WIDE)
    result = _product(total, of_weights, IS_WIDE)
    if HAS_GRID:
        grid = grids + token
        result = finished(
            result,
            tl.load(grid, is_token, other=0)[None, :],
            tl.load(grid + rows, is_token, other=0)[None, :],
            tl.load(grid + 2 * rows, is_token, other=0)[None, :],
            tl.load(scale + channel, is_channel, other=0)[:, None],
            tl.load(zero + channel, is_channel, other=0)[:, None],
            tl.load(sums + channel, is_channel, other=0)[:, None],
        )
    if HAS_BIAS:
        result += tl.load(bias + channel, is_channel, other=0)[:, None]
    target = output + token.to(tl.int64)[None, :] * out + channel[:, None]
    tl.store(target, result, is_channel[:, None] & is_token[None, :])


@triton.jit(do_not_specialize=["rows"])
def few_tokens(
    pairs, packed, scale, zero, sums, bias, output, rows, out, half, stride,
    HAS_GRID: tl.constexpr, HAS_BIAS: tl.constexpr, IS_WIDE: tl.constexpr,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Results of at most ``ROWS`` tokens; a program passes over all inputs of its outputs.

    Args:
        pairs: int16, two activations each; a row every ``stride``.
        packed: the weight, uint8 ``(out, half)``.
        scale: of the outputs, float32 ``(out,)``; the next three likewise.
        zero: see :func:`duquant.ops.packed_product.linear_in_steps`.
        sums: likewise.
        bias: likewise.
        output: ``(rows, out)``.
        rows: tokens.
        out: outputs.
        half: bytes of a packed row.
        stride: of the rows of ``pairs``.
        HAS_GRID: whether rows are encoded tokens; if not, products alone are written.
        HAS_BIAS: whether there is a bias.
        IS_WIDE: whether activations exceed 127.
        OUTPUTS: weight rows at a time.
        ROWS: tokens at a time.
        BLOCK: bytes at a time.
    """
    channel = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    token = tl.arange(0, ROWS)
    is_channel, is_token = channel < out, token < rows
    total = tl.zeros((OUTPUTS, ROWS), dtype=tl.int32)
    of_weights = tl.zeros((OUTPUTS, NARROWEST), dtype=tl.int32)
    token_sum = tl.zeros((ROWS,), dtype=tl.int32)
    for start in range(0, half, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = (at < half)[:, None] & is_token[None, :]
        pair = tl.load(pairs + token[None, :] * stride + at[:, None], inside, other=0)
        even, odd = _apart(pair, IS_WIDE)
        token_sum += tl.sum(_added(pair), 0)
        weights = _packed_tile(packed, channel, at, out, half)
        total, of_weights = _multiply(total, of_weights, weights, even, odd, IS_WIDE)
    result = _product(total, of_weights, IS_WIDE)
    if HAS_GRID:
        token_scale, token_zero = _token_grid(pairs, token, stride, half, is_token)
        result = finished(
            result,
            token_scale[None, :],
            token_zero[None, :],
            token_sum.to(tl.float32)[None, :],
            tl.load(scale + channel, is_channel, other=0)[:, None],
            tl.load(zero + channel, is_channel, other=0)[:, None],
            tl.load(sums + channel, is_channel, other=0)[:, None],
        )
    if HAS_BIAS:
        result += tl.load(bias + channel, is_channel, other=0)[:, None]
    target = output + token.to(tl.int64)[None, :] * out + channel[:, None]
    tl.store(target, result, is_channel[:, None] & is_token[None, :])
