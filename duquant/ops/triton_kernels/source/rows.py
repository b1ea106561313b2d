"""The Triton source of :mod:`duquant.ops.triton_kernels.rows`.

A program takes ``ROWS`` whole rows, ``COLUMNS`` of their entries at a time. It passes over them
twice, once for their ends and once to quantize; the second time they come from the cache.
"""

import triton
import triton.language as tl

WIDE_BITS, SMALLEST_SCALE, LARGEST_SCALE = (tl.constexpr(each) for each in (14, 1e-5, 1e4))
LARGEST_ZERO = tl.constexpr(1e4)
HALVES = tl.constexpr(1.5 * 2**23)
"""From half of that on, float32 has no place for fractions."""


@triton.jit
def _round(x):
    """The nearest integer, halves to even, up to ``2**22``: what is larger is clamped anyway."""
    return (x + HALVES) - HALVES


@triton.jit
def clamp(x, low, high):
    """Between two numbers; what is not a number stays that."""
    return tl.clamp(x, low, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _place(rows, columns, ROWS: tl.constexpr):
    """The rows of this program, which of them exist, and where they begin."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return row, row < rows, (row * columns)[:, None]


@triton.jit
def _extremes(x, start, is_row, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Largest and smallest entry of every row ``(ROWS,)``; NaN where one is."""
    high = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    low = tl.full((ROWS, COLUMNS), float("inf"), tl.float32)
    for first in range(0, columns, COLUMNS):
        at = first + tl.arange(0, COLUMNS)[None, :]
        inside = is_row[:, None] & (at < columns)
        each = tl.load(x + start + at, inside, other=0).to(tl.float32)
        more, less = tl.where(inside, each, float("-inf")), tl.where(inside, each, float("inf"))
        high = tl.maximum(high, more, propagate_nan=tl.PropagateNan.ALL)
        low = tl.minimum(low, less, propagate_nan=tl.PropagateNan.ALL)
    return row_ends(high, low)


@triton.jit
def row_ends(high, low):
    """Largest of ``high`` and smallest of ``low`` of every row; NaN where ``high`` has one."""
    is_odd = tl.max((high != high).to(tl.int32), 1) > 0
    high = tl.where(is_odd, float("nan"), tl.max(high, 1))
    return high, tl.where(is_odd, float("nan"), tl.min(low, 1))


@triton.jit
def row_grid(high, low, BITS: tl.constexpr, SYMMETRIC: tl.constexpr):
    """:func:`duquant.ops.affine.grid_of_range`."""
    if SYMMETRIC:
        middle: tl.constexpr = 2.0 ** (BITS - 1) - 1
        largest = tl.maximum(tl.abs(high), tl.abs(low), propagate_nan=tl.PropagateNan.ALL)
        scale = clamp(tl.div_rn(largest, middle), SMALLEST_SCALE, LARGEST_SCALE)
        return scale, tl.full(scale.shape, middle, tl.float32)
    if BITS >= WIDE_BITS:
        high, low = clamp(high, 0.0, float("inf")), clamp(low, float("-inf"), 0.0)
    last: tl.constexpr = 2.0**BITS - 1
    scale = clamp(tl.div_rn(high - low, last), SMALLEST_SCALE, LARGEST_SCALE)
    limit: tl.constexpr = max(LARGEST_ZERO, last)
    return scale, _round(clamp(tl.div_rn(-low, scale), -limit, limit))


@triton.jit
def row_levels(x, scale, zero):
    """Integers before they are clamped."""
    return _round(tl.div_rn(x, scale[:, None])) + zero[:, None]


@triton.jit(do_not_specialize=["rows"])
def fake_quantize(
    x, clip_high, clip_low, values, all_highest, all_lowest, scales, zeros,
    rows, columns, high_ratio, low_ratio,
    HAS_HIGH: tl.constexpr, HAS_LOW: tl.constexpr, BITS: tl.constexpr, SYMMETRIC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """:func:`duquant.ops.fake_quantize.quantize_in_steps`."""
    row, is_row, start = _place(rows, columns, ROWS)
    highest, lowest = _extremes(x, start, is_row, columns, ROWS, COLUMNS)
    high, low = highest * high_ratio, lowest * low_ratio
    if HAS_HIGH:
        high = highest * tl.load(clip_high + row, is_row, other=0)
    if HAS_LOW:
        low = lowest * tl.load(clip_low + row, is_row, other=0)
    scale, zero = row_grid(high, low, BITS, SYMMETRIC)
    tl.store(all_highest + row, highest, is_row)
    tl.store(all_lowest + row, lowest, is_row)
    tl.store(scales + row, scale, is_row)
    tl.store(zeros + row, zero, is_row)
    for first in range(0, columns, COLUMNS):
        at = first + tl.arange(0, COLUMNS)[None, :]
        inside = is_row[:, None] & (at < columns)
        each = tl.load(x + start + at, inside, other=0).to(tl.float32)
        q = clamp(row_levels(each, scale, zero), 0.0, 2.0**BITS - 1)
        tl.store(values + start + at, (q - zero[:, None]) * scale[:, None], inside)


@triton.jit(do_not_specialize=["rows"])
def gradient(
    x, grad, highest, lowest, scales, zeros, to_scale, clamped, to_x, places_high, places_low,
    rows, columns,
    WANTS_INPUT: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """:func:`duquant.ops.rows_gradient.gradient_in_steps`."""
    row, is_row, start = _place(rows, columns, ROWS)
    scale, zero = tl.load(scales + row, is_row, other=1), tl.load(zeros + row, is_row, other=0)
    high, low = tl.load(highest + row, is_row, other=0), tl.load(lowest + row, is_row, other=0)
    distances = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    outsides = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    at_high = tl.full((ROWS, COLUMNS), columns, tl.int32)
    at_low = tl.full((ROWS, COLUMNS), columns, tl.int32)
    for first in range(0, columns, COLUMNS):
        at = first + tl.arange(0, COLUMNS)[None, :]
        inside = is_row[:, None] & (at < columns)
        each = tl.load(x + start + at, inside, other=0).to(tl.float32)
        arriving = tl.load(grad + start + at, inside, other=0).to(tl.float32)
        levels = row_levels(each, scale, zero)
        q = clamp(levels, 0.0, 2.0**BITS - 1)
        is_outside = levels != q
        distance = (
            (q - zero[:, None]) * scale[:, None] - tl.where(is_outside, 0.0, each)
        ) * arriving
        distances += tl.where(inside, distance, 0.0)
        outsides += tl.where(is_outside, arriving, 0.0)
        if WANTS_INPUT:
            passed = tl.where(is_outside, 0.0 * scale[:, None], arriving)
            tl.store(to_x + start + at, passed, inside)
            at_high = tl.minimum(at_high, tl.where(inside & (each == high[:, None]), at, columns))
            at_low = tl.minimum(at_low, tl.where(inside & (each == low[:, None]), at, columns))
    tl.store(to_scale + row, tl.sum(distances, 1), is_row)
    tl.store(clamped + row, tl.sum(outsides, 1), is_row)
    if WANTS_INPUT:
        first_high, first_low = tl.min(at_high, 1), tl.min(at_low, 1)
        tl.store(places_high + row, tl.where(first_high < columns, first_high, 0), is_row)
        tl.store(places_low + row, tl.where(first_low < columns, first_low, 0), is_row)


@triton.jit
def encode_rows(
    x, clip_ends, output, row, is_row, columns, ratio,
    HAS_ENDS: tl.constexpr, BITS: tl.constexpr, SYMMETRIC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows of :mod:`duquant.ops.quantized_tokens`: integers, 4 bytes of scale, 2 of zero point."""
    start = (row * columns)[:, None]
    highest, lowest = _extremes(x, start, is_row, columns, ROWS, COLUMNS)
    of_high, of_low = ratio, ratio
    if HAS_ENDS:
        of_high, of_low = tl.load(clip_ends), tl.load(clip_ends + 1)
    scale, zero = row_grid(highest * of_high, lowest * of_low, BITS, SYMMETRIC)
    target = output + (row * (columns + 6))[:, None]
    for first in range(0, columns, COLUMNS):
        at = first + tl.arange(0, COLUMNS)[None, :]
        inside = is_row[:, None] & (at < columns)
        each = tl.load(x + start + at, inside, other=0).to(tl.float32)
        q = clamp(row_levels(each, scale, zero), 0.0, 2.0**BITS - 1)
        q = tl.where(q == q, q, 0.0)  # no byte says that it is not a number; the scale does
        tl.store(target + at, q.to(tl.int32).to(tl.uint8), inside)
    zero = tl.where(zero == zero, zero, 0.0).to(tl.int32)
    place = tl.arange(0, 4)[None, :]
    behind, shift = target + columns + place, 8 * place
    scale_bytes = (scale.to(tl.int32, bitcast=True)[:, None] >> shift) & 255
    tl.store(behind, scale_bytes.to(tl.uint8), is_row[:, None] & (place < 4))
    zero_bytes = (zero[:, None] >> shift) & 255
    tl.store(behind + 4, zero_bytes.to(tl.uint8), is_row[:, None] & (place < 2))


@triton.jit(do_not_specialize=["rows"])
def encode(
    x, clip_ends, output, rows, columns, ratio,
    HAS_ENDS: tl.constexpr, BITS: tl.constexpr, SYMMETRIC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """:func:`duquant.ops.quantized_tokens.quantize_tokens_in_steps`."""
    row, is_row, _ = _place(rows, columns, ROWS)
    encode_rows(
        x, clip_ends, output, row, is_row, columns, ratio, HAS_ENDS, BITS, SYMMETRIC, ROWS, COLUMNS
    )
