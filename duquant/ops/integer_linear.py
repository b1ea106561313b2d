"""A linear layer of integers: exact products, then zero points, scales and bias.

By the formula of :mod:`duquant.ops.integer_product`. Inputs are cut into *panels*: a panel's inputs
share a scale, and its sums are counted exactly. A weight that is packed in 4 bits with one scale
per row is a single panel, and its kernel does all of it at once. Of a single panel every kernel
gives the same bits (:mod:`duquant.ops.scaled_sums`). Where no kernel scales sums, as on CUDA
without Triton, corrections are rounded in another order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from duquant.ops.affine import AffineGrid
from duquant.ops.integer_weight import ChosenWeight, IntegerWeight, PackedWeight
from duquant.ops.kernel_presence import announce_kernel, call, is_present
from duquant.ops.numbered_weights import entered
from duquant.ops.packed_product import packed_linear
from duquant.ops.quantized_tokens import GRID_BYTES, decode_tokens
from duquant.ops.scaled_sums import scaled_sums


class Panel(NamedTuple):
    """Consecutive inputs that share a scale and whose products sum exactly.

    Attributes:
        columns: which inputs.
        weight: their integers ``q'_w``.
        sums: ``Σ (q'_w − z'_w)`` of every row, float32 ``(out,)``.
        zero: ``z'_w``, likewise.
        scale: ``s_w``, likewise.
    """

    columns: slice
    weight: IntegerWeight
    sums: Tensor
    zero: Tensor
    scale: Tensor


def integer_linear(
    tokens: Tensor, panels: Sequence[Panel], bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``x · Wᵀ + bias`` of encoded tokens.

    Args:
        tokens: ``uint8 (rows, in + 6)`` of :mod:`duquant.ops.quantized_tokens`.
        panels: the weight.
        bias: ``(out,)`` or ``None``.
        dtype: of the result.

    Returns:
        ``(rows, out)``.
    """
    first = panels[0]
    if isinstance(first.weight, PackedWeight):
        return _packed_linear(tokens, first.weight, first, bias, dtype)
    if isinstance(first.weight, ChosenWeight):
        parts = first.scale, first.zero, first.sums
        chosen: Tensor = call(chosen_linear, tokens, first.weight.number, *parts, bias, dtype)
        return chosen
    if len(panels) == 1 and is_present("scaled_sums", tokens.device.type):
        product = first.weight.product(tokens[:, first.columns])
        return _scaled(product, tokens, first, bias, dtype)
    q, grid = decode_tokens(tokens)
    total = None
    for panel in panels:
        part = scaled_product(q[:, panel.columns], grid, panel.weight, panel.sums, panel.zero)
        part.mul_(panel.scale)
        total = part if total is None else total.add_(part)
    assert total is not None
    output = total.mul_(grid.scale)
    if bias is not None:
        output.add_(bias)
    return output.to(dtype)


def scaled_product(
    q: Tensor, grid: AffineGrid, weight: IntegerWeight, sums: Tensor, zero: Tensor
) -> Tensor:
    """The bracket of the formula: exact wherever its three terms stay below ``2**24``.

    Args:
        q: activation integers ``uint8 (rows, in)``.
        grid: their zero points (the scale is the caller's to apply), ``(rows, 1)``.
        weight: the prepared weight.
        sums: ``Σ (q'_w − z'_w)``, float32 ``(out,)``.
        zero: ``z'_w``, float32 ``(out,)``.

    Returns:
        float32 ``(rows, out)``.
    """
    row_sums = q.sum(dim=-1, keepdim=True, dtype=torch.int32).float()
    corrections = torch.cat([grid.zero, row_sums], dim=-1)
    return torch.addmm(weight.product(q).float(), corrections, torch.stack([sums, zero]), alpha=-1)


def _scaled(
    product: Tensor, tokens: Tensor, panel: Panel, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    parts = panel.scale, panel.zero, panel.sums
    output: Tensor = call(scaled_sums, product, tokens, *parts, bias, dtype)
    return output


def _packed_linear(
    tokens: Tensor, weight: PackedWeight, panel: Panel, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    scales = panel.scale, panel.zero, panel.sums
    operator, largest = packed_linear, weight.largest
    output: Tensor = call(operator, tokens, weight.packed, *scales, bias, largest, dtype)
    return output


def chosen_linear_in_steps(
    tokens: Tensor,
    number: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """A linear layer by the kernel that was chosen for so many tokens.

    A compiled graph holds it as one step, because it serves any number of them.

    Args:
        tokens: ``uint8 (rows, in + 6)``.
        number: of a :class:`duquant.ops.integer_weight.ChosenWeight`.
        scale: of the panel, likewise the next two.
        zero: see :class:`Panel`.
        sums: see :class:`Panel`.
        bias: ``(out,)`` or ``None``.
        dtype: of the result.

    Returns:
        ``(rows, out)``.
    """
    weight = entered(number).at(tokens.shape[0])
    columns = slice(0, tokens.shape[1] - GRID_BYTES)
    return integer_linear(tokens, [Panel(columns, weight, sums, zero, scale)], bias, dtype)


chosen_linear = torch.library.custom_op(
    "duquant::chosen_linear", chosen_linear_in_steps, mutates_args=()
)
announce_kernel("duquant::chosen_linear", "cpu", lambda: True, chosen_linear_in_steps)


@chosen_linear.register_fake
def _(
    tokens: Tensor,
    number: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return tokens.new_empty(tokens.shape[0], scale.shape[0], dtype=dtype)
