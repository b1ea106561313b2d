"""Bit packing: unsigned integers of 2 to 15 bits stored at their true width.

Integers are laid end to end, least significant bit first, and the stream of bits is cut into bytes.
At 4 bits that is two integers per byte, the first in the low half. Each row is padded with zero
bits to a whole byte, so rows stay addressable and odd widths lose at most seven bits per row.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS_AT_ONCE = 1024
"""Rows expanded to bits together, which bounds the temporary memory."""


def integer_dtype(bits: int) -> torch.dtype:
    """Smallest torch dtype in which integers of ``bits`` bits are unpacked."""
    return torch.uint8 if bits <= 8 else torch.int32


def packed_width(columns: int, bits: int) -> int:
    """Bytes that ``columns`` integers of ``bits`` bits take."""
    return (columns * bits + 7) // 8


def pack(q: Tensor, bits: int) -> Tensor:
    """Pack integers into bytes.

    Args:
        q: integers ``0 … 2**bits - 1``, shape ``(rows, columns)``, any dtype.
        bits: width, 1 to 15.

    Returns:
        ``uint8`` of shape ``(rows, packed_width(columns, bits))``.

    Raises:
        ValueError: if a value does not fit into ``bits`` bits.
    """
    require_width(q, bits)
    return pack_fitting(q, bits)


def require_width(q: Tensor, bits: int) -> None:
    """Raise ``ValueError`` if a value does not fit into ``bits`` bits; the host waits once."""
    low, high = torch.stack(q.aminmax()).tolist() if q.numel() else (0.0, 0.0)
    if not (low >= 0 and high < 2**bits):  # nor does what is not a number
        raise ValueError(f"values {low:g}…{high:g} do not fit into {bits} bits")


def pack_fitting(q: Tensor, bits: int) -> Tensor:
    """:func:`pack` of what was just clamped to ``bits`` bits, as every token of a cache is."""
    chunks = [_pack_rows(rows, bits) for rows in q.to(integer_dtype(bits)).split(ROWS_AT_ONCE)]
    return torch.cat(chunks)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Undo :func:`pack`.

    Args:
        packed: ``uint8`` of shape ``(rows, packed_width(columns, bits))``.
        bits: width, 1 to 15.
        columns: how many integers a row holds.

    Returns:
        ``uint8`` (``int32`` above 8 bits) of shape ``(rows, columns)``.
    """
    return torch.cat([_unpack_rows(rows, bits, columns) for rows in packed.split(ROWS_AT_ONCE)])


def _pack_rows(q: Tensor, bits: int) -> Tensor:
    rows, columns = q.shape
    if 8 % bits == 0:  # whole integers in every byte
        parts = (
            F.pad(q, (0, -columns % (8 // bits)))
            .view(rows, packed_width(columns, bits), 8 // bits)
            .unbind(-1)
        )
        whole = parts[0].clone()
        for place, part in enumerate(parts[1:], start=1):
            whole |= part << (place * bits)
        return whole
    stream = torch.zeros(rows, packed_width(columns, bits) * 8, dtype=torch.uint8, device=q.device)
    places = torch.arange(bits, dtype=q.dtype, device=q.device)
    each_bit = q.unsqueeze(-1).bitwise_right_shift(places).bitwise_and(1)
    stream[:, : columns * bits] = each_bit.flatten(1).to(torch.uint8)
    values = 1 << torch.arange(8, dtype=torch.uint8, device=q.device)
    return (stream.view(rows, packed_width(columns, bits), 8) * values).sum(
        dim=-1, dtype=torch.uint8
    )


def _unpack_rows(packed: Tensor, bits: int, columns: int) -> Tensor:
    if 8 % bits == 0:
        parts = [(packed >> place) & (2**bits - 1) for place in range(0, 8, bits)]
        return torch.stack(parts, dim=-1).flatten(1)[:, :columns]
    dtype = integer_dtype(bits)
    eight = torch.arange(8, dtype=torch.uint8, device=packed.device)
    stream = packed.unsqueeze(-1).bitwise_right_shift(eight).bitwise_and(1).flatten(1)
    places = torch.arange(bits, dtype=dtype, device=packed.device)
    integers = stream[:, : columns * bits].view(packed.shape[0], columns, bits).to(dtype)
    return (integers << places).sum(dim=-1, dtype=dtype)
