"""The Triton source of :mod:`duquant.ops.triton_kernels.transformed`."""

import triton
import triton.language as tl

from duquant.ops.triton_kernels.source.rows import (
    clamp,
    encode_rows,
    row_ends,
    row_grid,
    row_levels,
)
from duquant.ops.triton_kernels.source.transform import place, rotated_tile, write_tile


@triton.jit(do_not_specialize=["tokens"])
def rotate_and_encode(
    x, rotations, order, between, arrivals, clip_ends, output,
    tokens, width, size, of_matrix, x_token, x_channel, ratio,
    HAS_ORDER: tl.constexpr, HAS_ENDS: tl.constexpr,
    BITS: tl.constexpr, SYMMETRIC: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The last rotation of at most ``ROWS`` tokens, and their bytes.

    A token's grid depends on all of its blocks. Whichever program is the last to arrive with a tile
    finds all others written to ``between (tokens, width)`` and quantizes. ``arrivals`` is 0 before.
    """
    token, block, column = place(size, TOKENS, CHANNELS)
    tile = rotated_tile(
        x, None, rotations, order, token, block, column, tokens, width, size, of_matrix,
        x_token, x_channel, False, HAS_ORDER, True, TOKENS, CHANNELS, BLOCK,
    )  # fmt: skip
    write_tile(tile, between, token, block, column, tokens, size, width, 1)
    tl.debug_barrier()  # all threads of this program have written before it says so
    arrived = tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu")
    if arrived == tl.num_programs(1) - 1:
        row = tl.arange(0, ROWS).to(tl.int64)
        encode_rows(
            between, clip_ends, output, row, row < tokens, width, ratio,
            HAS_ENDS, BITS, SYMMETRIC, ROWS, COLUMNS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def quantize_values(
    x, rotation, values, rows, width, size, ratio,
    HAS_ROTATION: tl.constexpr, BITS: tl.constexpr, SYMMETRIC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """:func:`duquant.ops.transformed_tokens.transformed_values_in_steps` of short rows.

    Args:
        x: floats ``(rows, width)``.
        rotation: float32 ``(size, size)``.
        values: what is written, likewise.
        rows: how many.
        width: of a row.
        size: channels of a block.
        ratio: factor on both ends of every row's range.
        HAS_ROTATION: whether there is a rotation.
        BITS: of the integers.
        SYMMETRIC: whether the range is centred on zero.
        ROWS: rows at a time.
        COLUMNS: at least ``width``.
        BLOCK: rows of the matrix at a time; divides ``size``.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    is_row, start = (row < rows)[:, None], (row * width)[:, None]
    inside = is_row & (column < width)[None, :]
    if HAS_ROTATION:
        tile = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for first in range(0, width, BLOCK):
            at = first + tl.arange(0, BLOCK)
            part = tl.load(x + start + at[None, :], is_row, other=0).to(tl.float32)
            place_of = (at % size)[:, None] * size + (column % size)[None, :]
            product = tl.dot(part, tl.load(rotation + place_of), tile, input_precision="ieee")
            tile = tl.where((column // size == first // size)[None, :], product, tile)
    else:
        tile = tl.load(x + start + column[None, :], inside, other=0).to(tl.float32)
    more, less = tl.where(inside, tile, float("-inf")), tl.where(inside, tile, float("inf"))
    high, low = row_ends(more, less)
    scale, zero = row_grid(high * ratio, low * ratio, BITS, SYMMETRIC)
    q = clamp(row_levels(tile, scale, zero), 0.0, 2.0**BITS - 1)
    target = values + start + column[None, :]
    tl.store(target, (q - zero[:, None]) * scale[:, None], inside)
