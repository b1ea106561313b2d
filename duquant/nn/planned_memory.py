"""What a packed weight will take in memory once it has run, for who has to place it beforehand.

A file holds half a byte per weight. The first token lays the weight out as its backend wants it:

| backend | then there are |
|---|---|
| integer, by a kernel that reads packed weights | the packed bytes |
| integer, by a kernel for weights laid out | a byte per weight instead of the packed bytes |
| integer, by both, for few and for many tokens | the packed bytes, and a byte per weight |
| reference | the packed bytes, and values in the model's dtype |
| any, ``weights_in_memory="packed"`` | the packed bytes |
"""

import torch

from duquant.nn.measured_choice import choose
from duquant.nn.packed_linear import PackedLinear


def bytes_at_work(linear: PackedLinear, device: torch.device) -> int:
    """Bytes of the weight's codes or values; scales and zero points come on top.

    Args:
        linear: as it was built or loaded; it may be on the meta device.
        device: where it will run.
    """
    weights = linear.out_features * linear.in_features
    packed = linear.qweight.nbytes
    if linear.execution.weights_in_memory == "packed":
        return packed
    linear.choice = choose(linear, linear.execution, device)
    if not linear.is_integer_on(device):
        return packed + weights * linear.output_like.dtype.itemsize
    kernels = linear.planned_kernels(device)
    is_packed, is_laid_out = "packed" in kernels, any(kernel != "packed" for kernel in kernels)
    return packed * is_packed + weights * is_laid_out
