"""The Triton source of :mod:`duquant.ops.triton_kernels.transform`."""

import triton
import triton.language as tl


@triton.jit
def place(size, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
    """The tile of this program: tokens, its block, columns of the block's matrix."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    across = tl.cdiv(size, CHANNELS)
    block = tl.program_id(1) // across
    return token, block, (tl.program_id(1) % across) * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit
def rotated_tile(
    x, mean, rotations, order, token, block, column, tokens, width, size, of_matrix,
    x_token, x_channel,
    HAS_MEAN: tl.constexpr, HAS_ORDER: tl.constexpr, WIDENS: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile ``(TOKENS, CHANNELS)`` of a block times its rotation, float32.

    Args:
        x: floats, ``x_token`` apart from token to token, ``x_channel`` from channel to channel.
        mean: subtracted from the channels ``(width,)`` first, where there is one.
        rotations: ``(matrices, size, size)`` in the dtype of ``x``, or float32 with ``WIDENS``.
        order: which channels ``x`` is read in, ``(width,)``; one that does not exist, which a
            damaged file may name, makes its block NaN.
        token: rows ``(TOKENS,)``, some of which may lie beyond the last.
        block: which one.
        column: of its matrix, ``(CHANNELS,)``, likewise.
        tokens: rows.
        width: channels.
        size: channels of a block.
        of_matrix: entries from a block's matrix to the next one's; 0 where they share one.
        x_token: see above.
        x_channel: see above.
        HAS_MEAN: whether there is a mean.
        HAS_ORDER: whether there is an order.
        WIDENS: multiply in float32: where tokens are quantized next, and in the interpreter, which
            multiplies no bfloat16.
        TOKENS: rows at a time.
        CHANNELS: columns of a matrix at a time.
        BLOCK: rows of a matrix at a time.
    """
    is_token, is_column = (token < tokens)[:, None], (column < size)[None, :]
    matrix = rotations + block * of_matrix
    source = x + token.to(tl.int64)[:, None] * x_token
    total = tl.zeros((TOKENS, CHANNELS), dtype=tl.float32)
    wrong = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, size, BLOCK):
        row = first + tl.arange(0, BLOCK)
        channel, is_row = block * size + row, row < size
        if HAS_ORDER:
            channel = tl.load(order + channel, is_row, other=0)
        exists = is_row & (channel >= 0) & (channel < width)
        at = channel.to(tl.int64)[None, :] * x_channel
        values = tl.load(source + at, is_token & exists[None, :], other=0)
        wrong |= (is_row & (exists == 0)).to(tl.int32)
        entries = tl.load(
            matrix + row[:, None] * size + column[None, :], is_row[:, None] & is_column, other=0
        )
        if WIDENS:
            values, entries = values.to(tl.float32), entries.to(tl.float32)
        if HAS_MEAN:
            values -= tl.load(mean + channel, exists, other=0)[None, :]
        total = tl.dot(values.to(entries.dtype), entries, total, input_precision="ieee")
    if HAS_ORDER:
        total = tl.where(tl.max(wrong, 0) > 0, float("nan"), total)
    return total


@triton.jit
def write_tile(
    tile, y, token, block, column, tokens, size, y_token, y_channel
):  # fmt: skip
    """Store a tile of a block where ``y`` has it; arguments as of :func:`rotated_tile`."""
    target = y + token.to(tl.int64)[:, None] * y_token
    target += (block * size + column).to(tl.int64)[None, :] * y_channel
    tl.store(target, tile, (token < tokens)[:, None] & (column < size)[None, :])


@triton.jit(do_not_specialize=["tokens"])
def rotate_blocks(
    x, mean, rotations, order, y, arrivals, tokens, width, size, of_matrix,
    x_token, x_channel, y_token, y_channel,
    HAS_MEAN: tl.constexpr, HAS_ORDER: tl.constexpr, IS_COUNTED: tl.constexpr,
    WIDENS: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Every block times its rotation; arguments are those of :func:`rotated_tile`.

    With ``IS_COUNTED`` the counter of the next launch, ``arrivals``, is set to 0.
    """
    token, block, column = place(size, TOKENS, CHANNELS)
    tile = rotated_tile(
        x, mean, rotations, order, token, block, column, tokens, width, size, of_matrix,
        x_token, x_channel, HAS_MEAN, HAS_ORDER, WIDENS, TOKENS, CHANNELS, BLOCK,
    )  # fmt: skip
    write_tile(tile, y, token, block, column, tokens, size, y_token, y_channel)
    if IS_COUNTED and tl.program_id(1) == 0:
        tl.store(arrivals + tl.program_id(0), 0)
