"""The Triton source of :mod:`duquant.ops.triton_kernels.transform`."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens"])
def rotate_blocks(
    x, rotations, order, y, tokens, width, size, of_matrix,
    x_token, x_channel, y_token, y_channel,
    HAS_ORDER: tl.constexpr, WIDENS: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile ``(TOKENS, CHANNELS)`` of a block times its rotation.

    Args:
        x: floats, ``x_token`` apart from token to token, ``x_channel`` from channel to channel.
        rotations: ``(matrices, size, size)`` in the dtype of ``x``.
        order: which channels ``x`` is read in, ``(width,)``; one that does not exist, which a
            damaged file may name, makes its block NaN.
        y: what is written, likewise.
        tokens: rows.
        width: channels.
        size: channels of a block.
        of_matrix: entries from a block's matrix to the next one's; 0 where they share one.
        x_token: see above.
        x_channel: see above.
        y_token: see above.
        y_channel: see above.
        HAS_ORDER: whether there is an order.
        WIDENS: multiply in float32, because the interpreter multiplies no bfloat16.
        TOKENS: rows at a time.
        CHANNELS: columns of a matrix at a time.
        BLOCK: rows of a matrix at a time.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    across = tl.cdiv(size, CHANNELS)
    block = tl.program_id(1) // across
    column = (tl.program_id(1) % across) * CHANNELS + tl.arange(0, CHANNELS)
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
        place = channel.to(tl.int64)[None, :] * x_channel
        values = tl.load(source + place, is_token & exists[None, :], other=0)
        wrong |= (is_row & (exists == 0)).to(tl.int32)
        entries = tl.load(
            matrix + row[:, None] * size + column[None, :], is_row[:, None] & is_column, other=0
        )
        if WIDENS:
            values, entries = values.to(tl.float32), entries.to(tl.float32)
        total = tl.dot(values.to(entries.dtype), entries, total, input_precision="ieee")
    if HAS_ORDER:
        total = tl.where(tl.max(wrong, 0) > 0, float("nan"), total)
    target = y + token.to(tl.int64)[:, None] * y_token
    target += (block * size + column).to(tl.int64)[None, :] * y_channel
    tl.store(target, total, is_token & is_column)
