"""Quantized rows as bytes: what a format stores of a row, laid side by side.

A cache of keys and values keeps tokens that arrive one by one, and is cut, joined and reordered by
code that is not ours. So a token is one row of bytes, whatever its format:

    integer   | packed | scale, float32 | zero point, int16 |
    mxfp4     | packed | scales, E8M0 |
    nvfp4     | packed | scales, E4M3 |

What belongs to the tensor as a whole (NVFP4's global scale) follows from its peak, a calibrated
number that is known when rows are written and when they are read; it is not repeated in them.
"""

from math import prod

import torch
from torch import Tensor

from duquant.formats.number_format import NO_CLIP, Clip, NumberFormat, split_rows


def row_width(form: NumberFormat, columns: int) -> int:
    """Bytes that a row of ``columns`` entries takes."""
    return sum(_widths(form, columns).values())


def encode_rows(
    form: NumberFormat, x: Tensor, clip: Clip = NO_CLIP, peak: Tensor | None = None
) -> Tensor:
    """Quantize rows and lay them out as bytes.

    Args:
        form: a format whose groups divide the rows.
        x: float ``(..., columns)``.
        clip: numbers that shrink the ranges.
        peak: of the whole tensor, where the format needs it.

    Returns:
        ``uint8 (..., row_width(form, columns))``.
    """
    flat = x.reshape(-1, x.shape[-1])
    rows = split_rows(flat, form.group_size)
    grid = form.grid(rows, clip, peak)
    stored = form.store(form.codes(rows, grid).view(flat.shape), grid)
    parts = [stored[name].view(torch.uint8) for name in _widths(form, x.shape[-1])]
    width = row_width(form, x.shape[-1])
    return torch.cat(parts, dim=-1).reshape(*x.shape[:-1], width)


def decode_rows(
    form: NumberFormat, encoded: Tensor, columns: int, peak: Tensor | None = None
) -> Tensor:
    """The values that rows of bytes stand for, ``(..., columns)``, in the dtype of the scales."""
    flat = encoded.reshape(-1, encoded.shape[-1])
    widths = _widths(form, columns)
    parts = flat.split(list(widths.values()), dim=-1)
    shapes = form.stored_shapes(len(flat), columns)
    stored = _shared_parts(form, columns, peak, encoded.device)
    for name, part in zip(widths, parts, strict=True):
        # A view of several bytes as one number needs memory of its own.
        own = part.clone(memory_format=torch.contiguous_format)
        stored[name] = own.view(shapes[name][1])
    codes, grid = form.restore(stored, columns)
    values = form.values(split_rows(codes, form.group_size), grid)
    return values.reshape(*encoded.shape[:-1], columns)


def _widths(form: NumberFormat, columns: int) -> dict[str, int]:
    """Bytes of each part that lies row by row."""
    shapes = form.stored_shapes(1, columns)
    return {
        name: prod(shape) * dtype.itemsize
        for name, (shape, dtype) in shapes.items()
        if len(shape) == 2
    }


def _shared_parts(
    form: NumberFormat, columns: int, peak: Tensor | None, device: torch.device
) -> dict[str, Tensor]:
    """Parts of the whole tensor: the same for any row, so for one of zeros."""
    per_row = _widths(form, columns)
    if per_row.keys() == form.stored_shapes(1, columns).keys():
        return {}
    row = torch.zeros(1, columns, dtype=torch.float32, device=device)
    rows = split_rows(row, form.group_size)
    grid = form.grid(rows, peak=peak)
    stored = form.store(form.codes(rows, grid).view(row.shape), grid)
    return {name: part for name, part in stored.items() if name not in per_row}
