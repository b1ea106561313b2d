"""What a packed weight will take in memory once it has run, for who has to place it beforehand.

A file holds half a byte per weight. The first token lays the weight out as its backend wants it:

| backend | then there are |
|---|---|
| integer, by a kernel that reads packed weights | the packed bytes |
| integer, by a kernel for weights laid out | a byte per weight instead of the packed bytes |
| integer, by both, for few and for many tokens | the packed bytes, and a byte per weight |
| reference | the packed bytes, and values in the model's dtype |
| any, ``weights_in_memory="packed"`` | the packed bytes |

An accelerator is planned by the fixed rule. What was measured to be faster there is taken once the
model lies on it, where all of it fits into the memory that is left.
"""

import logging
from collections.abc import Sequence

import torch

from duquant.nn.execution import PROCESSOR
from duquant.nn.measured_choice import choose
from duquant.nn.packed_linear import PackedLinear
from duquant.ops.device_memory import free_device_bytes

SHARE_OF_FREE = 0.5
"""Of an accelerator's memory; the rest is for tokens."""

logger = logging.getLogger(__name__)


def bytes_at_work(linear: PackedLinear, device: torch.device) -> int:
    """Bytes of the weight's codes or values; scales and zero points come on top.

    Args:
        linear: as it was built or loaded; it may be on the meta device.
        device: where it will run.
    """
    if device.type == PROCESSOR:
        linear.choice = choose(linear, linear.execution, device)
    return _bytes(linear, device)


def keep_what_fits(linears: Sequence[PackedLinear]) -> None:
    """Return to the fixed rule on accelerators whose memory is short for what was chosen.

    Args:
        linears: all of a model, with their choices; only the packed weights are in memory.
    """
    for device in {linear.grid_device for linear in linears}:
        here = [each for each in linears if each.grid_device == device and each.choice is not None]
        if device.type == PROCESSOR or not here:
            continue
        packed = sum(linear.qweight.nbytes for linear in here)
        choices, chosen = [linear.choice for linear in here], _sum(here, device)
        for linear in here:
            linear.choice = None
        free = free_device_bytes(device) or 0
        if chosen <= _sum(here, device) or chosen - packed <= SHARE_OF_FREE * free:
            for linear, choice in zip(here, choices, strict=True):
                linear.choice = choice
        else:
            logger.info(
                "%s: what is faster would take %d bytes more, of %d that are free; the fixed rule "
                "decides",
                *(device, chosen - packed, free),
            )


def _sum(linears: Sequence[PackedLinear], device: torch.device) -> int:
    return sum(_bytes(linear, device) for linear in linears)


def _bytes(linear: PackedLinear, device: torch.device) -> int:
    weights = linear.out_features * linear.in_features
    packed = linear.qweight.nbytes
    if linear.execution.weights_in_memory == "packed":
        return packed
    if not linear.is_integer_on(device):
        return packed + weights * linear.output_like.dtype.itemsize
    kernels = linear.planned_kernels(device)
    is_packed, is_laid_out = "packed" in kernels, any(kernel != "packed" for kernel in kernels)
    return packed * is_packed + weights * is_laid_out
