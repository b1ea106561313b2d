"""The integers of a weight, laid out for the kernels that multiply them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from duquant.ops.integer_linear import Panel
from duquant.ops.integer_product import (
    columns_at_once,
    layout_kernels,
    prepare_weight,
    reads_packed,
    weight_sums,
)
from duquant.ops.integer_weight import (
    ROW_COUNTS,
    ChosenWeight,
    IntegerWeight,
    KernelName,
    Kernels,
    PackedWeight,
)


class WeightIntegers(NamedTuple):
    """What a weight of integers is made of.

    Attributes:
        packed: ``uint8 (out, packed width)``, or ``None`` where only other layouts are left.
        codes: makes ``uint8 (out, in)`` of it.
        scale: ``(out, groups)``.
        zero: likewise.
        columns: inputs.
        group_size: inputs that share a scale.
        bits: width of a code.
        activation_bits: width of the integers it will meet.
    """

    packed: Tensor | None
    codes: Callable[[], Tensor]
    scale: Tensor
    zero: Tensor
    columns: int
    group_size: int
    bits: int
    activation_bits: int


def planned_kernels(
    weight: WeightIntegers, chosen: Kernels | None, device: torch.device
) -> Kernels:
    """What multiplies a weight, for each of ``ROW_COUNTS``: the packed kernel, and one other.

    Args:
        weight: its integers and scales; they may be on the meta device.
        chosen: kernels of that kind; those that are not there are replaced. ``None``: the packed
            kernel where there is one, else the device's usual one.
        device: where it runs.
    """
    layouts = layout_kernels(device)
    is_read = weight.packed is not None and weight.scale.shape[1] == 1
    has_packed = is_read and reads_packed(
        activation_bits=weight.activation_bits,
        weight_bits=weight.bits,
        columns=weight.columns,
        device_type=device.type,
    )
    others = [kernel for kernel in chosen or () if kernel in layouts] or layouts
    other: KernelName = others[0] if others else "fbgemm"  # which refuses where there is no engine
    packed: Kernels = ("packed",)
    kernels = chosen or packed * len(ROW_COUNTS)
    return tuple("packed" if kernel == "packed" and has_packed else other for kernel in kernels)


def make_panels(weight: WeightIntegers, chosen: Kernels | None = None) -> list[Panel]:
    """Lay a weight out for the kernels that :func:`planned_kernels` names.

    Raises:
        ValueError: if its device has no integer product.
    """
    bits = {"activation_bits": weight.activation_bits, "weight_bits": weight.bits}
    kernels = planned_kernels(weight, chosen, weight.scale.device)
    other = next((kernel for kernel in kernels if kernel != "packed"), None)
    if "packed" in kernels:
        assert weight.packed is not None
        packed = PackedWeight(weight.packed, largest=2**weight.activation_bits - 1)
        part: IntegerWeight = packed
        if other is not None:
            laid_out = prepare_weight(_signed(weight), **bits, kernel=other)
            part = ChosenWeight(packed, laid_out, kernels)
        return [_panel(weight, slice(0, weight.columns), 0, part)]
    signed, widest = _signed(weight), columns_at_once(weight.activation_bits, weight.bits)
    panels = []
    for group in range(weight.scale.shape[1]):
        first, last = group * weight.group_size, (group + 1) * weight.group_size
        for start in range(first, last, widest):
            columns = slice(start, min(start + widest, last))
            part = prepare_weight(signed[:, columns].contiguous(), **bits, kernel=other)
            panels.append(_panel(weight, columns, group, part))
    return panels


def _signed(weight: WeightIntegers) -> Tensor:
    signed: Tensor = (weight.codes().to(torch.int16) - 2 ** (weight.bits - 1)).to(torch.int8)
    return signed


def _panel(weight: WeightIntegers, columns: slice, group: int, integers: IntegerWeight) -> Panel:
    zero = weight.zero[:, group].float() - 2 ** (weight.bits - 1)
    sums = weight_sums(integers, columns.stop - columns.start, zero)
    return Panel(columns, integers, sums, zero, weight.scale[:, group])
