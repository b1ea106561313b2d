"""What a packed weight will take in memory once it has run, for who has to place it beforehand.

A file holds half a byte per weight. The first token lays the weight out as its backend wants it:

| backend | then there are |
|---|---|
| integer, by a kernel that reads packed weights | the packed bytes |
| integer, by the device's int8 units | a byte per weight instead of the packed bytes |
| reference | the packed bytes, and values in the model's dtype |
| any, ``weights_in_memory="packed"`` | the packed bytes |
"""

import torch

from duquant.nn.packed_linear import PackedLinear
from duquant.ops.integer_product import reads_packed


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
    if not linear.is_integer_on(device):
        return packed + weights * linear.output_like.dtype.itemsize
    is_read = linear.scale.shape[1] == 1 and reads_packed(
        activation_bits=linear.activations.bits,
        weight_bits=linear.form.bits,
        columns=linear.in_features,
        device_type=device.type,
    )
    return packed if is_read else weights
