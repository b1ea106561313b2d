"""Products of activations with weights of 4 bits that stay packed, two in a byte.

The formula is that of :mod:`duquant.ops.integer_product`. Two operators: the exact products alone,
and a whole linear layer. Their definitions unpack the weight at every call; the kernels, which
:mod:`duquant.ops.kernels.table` lists, read it as it lies.
"""

import torch
from torch import Tensor

from duquant.ops.packing import unpack
from duquant.ops.quantized_tokens import GRID_BYTES
from duquant.ops.scaled_sums import scaled_sums_in_steps

PACKED_BITS = 4
OFFSET = 8
"""Products are with weights minus this: signed 4-bit integers."""
LARGEST_ACTIVATION, LARGEST_ON_PROCESSORS = 255, 127
"""Integers of an activation that kernels multiply, on accelerators and in C."""


def packed_integers(packed: Tensor, columns: int) -> Tensor:
    """The signed weights, ``int8 (out, columns)``."""
    q = unpack(packed, PACKED_BITS, columns)
    return (q.to(torch.int16) - OFFSET).to(torch.int8)


def product_in_steps(q: Tensor, packed: Tensor, largest: int) -> Tensor:
    """Exact products of activations with packed weights.

    Args:
        q: integers ``0 … largest``, ``uint8 (rows, in)``, ``in`` even.
        packed: ``uint8 (out, in / 2)`` as :func:`duquant.ops.packing.pack` lays 4 bits.
        largest: at most 255.

    Returns:
        ``Σ q · (w − 8)``, float32 ``(rows, out)``; exact below ``2**24``.
    """
    weight = packed_integers(packed, q.shape[1])
    return (q.double() @ weight.double().t()).float()


packed_product = torch.library.custom_op(
    "duquant::packed_product", product_in_steps, mutates_args=()
)


@packed_product.register_fake
def _(q: Tensor, packed: Tensor, largest: int) -> Tensor:
    return q.new_empty(q.shape[0], packed.shape[0], dtype=torch.float32)


def linear_in_steps(
    tokens: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    largest: int,
    dtype: torch.dtype,
) -> Tensor:
    """A linear layer of encoded tokens.

    Args:
        tokens: rows of :mod:`duquant.ops.quantized_tokens`, ``uint8 (rows, in + 6)``, ``in`` even.
        packed: ``uint8 (out, in / 2)``.
        scale: ``s_w`` of every weight row, ``(out,)``.
        zero: ``z'_w``, likewise.
        sums: ``Σ (q'_w − z'_w)``, likewise.
        bias: likewise, or ``None``.
        largest: largest integer of a token, at most 255.
        dtype: of the result.

    Returns:
        ``(rows, out)``, computed in float32.
    """
    product = product_in_steps(tokens[:, :-GRID_BYTES], packed, largest)
    return scaled_sums_in_steps(product, tokens, scale, zero, sums, bias, dtype)


packed_linear = torch.library.custom_op("duquant::packed_linear", linear_in_steps, mutates_args=())


@packed_linear.register_fake
def _(
    tokens: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    largest: int,
    dtype: torch.dtype,
) -> Tensor:
    return tokens.new_empty(tokens.shape[0], packed.shape[0], dtype=dtype)
