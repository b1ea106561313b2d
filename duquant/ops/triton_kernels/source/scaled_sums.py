"""The Triton source of :mod:`duquant.ops.triton_kernels.scaled_sums`.

A program takes one token, ``span`` of its outputs, ``COLUMNS`` of them at a time. Bytes behind the
integers of a token begin anywhere, so scale and zero point are put together from single bytes.
"""

import triton
import triton.language as tl

from duquant.ops.triton_kernels.source.int4 import finished


@triton.jit
def _number(first, BYTES: tl.constexpr):
    """The bytes at ``first`` as one int32, the lowest one first."""
    place = tl.arange(0, BYTES)
    return tl.sum(tl.load(first + place).to(tl.int32) << (8 * place), 0)


@triton.jit
def scale_sums(
    product, tokens, scale, zero, sums, bias, output, out, columns, across, stride, span,
    HAS_BIAS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """:func:`duquant.ops.scaled_sums.scaled_sums_in_steps`.

    Args:
        product: float32 or int32, a row every ``across``.
        tokens: encoded tokens, bytes, a row every ``stride``.
        scale: of the outputs, float32 ``(out,)``; the next three likewise.
        zero: see the definition.
        sums: likewise.
        bias: likewise.
        output: ``(rows, out)``.
        out: outputs.
        columns: integers of a token.
        across: of the rows of ``product``.
        stride: of the rows of ``tokens``.
        span: outputs of a program.
        HAS_BIAS: whether there is a bias.
        COLUMNS: outputs at a time.
        BLOCK: integers of a token at a time.
    """
    token = tl.program_id(0).to(tl.int64)
    integers = tokens + token * stride
    total = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(integers + at, at < columns, other=0).to(tl.int32)
    token_sum = tl.sum(total, 0).to(tl.float32)
    behind = integers + columns
    token_scale = _number(behind, 4).to(tl.float32, bitcast=True)
    token_zero = _number(behind + 4, 2).to(tl.int16).to(tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, out), COLUMNS):
        channel = start + tl.arange(0, COLUMNS)
        is_channel = channel < out
        result = finished(
            tl.load(product + token * across + channel, is_channel, other=0).to(tl.float32),
            token_scale,
            token_zero,
            token_sum,
            tl.load(scale + channel, is_channel, other=0),
            tl.load(zero + channel, is_channel, other=0),
            tl.load(sums + channel, is_channel, other=0),
        )
        if HAS_BIAS:
            result += tl.load(bias + channel, is_channel, other=0)
        tl.store(output + token * out + channel, result, is_channel)
