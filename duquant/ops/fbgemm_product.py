"""Exact integer products by FBGEMM, PyTorch's int8 kernels for x86 (AVX2, AVX512, VNNI).

Two limits decide how the work is cut (see :mod:`duquant.ops.integer_product`): results are float32,
and without VNNI two neighbouring products share a signed 16-bit register.
"""

import warnings

import torch
from torch import Tensor

from duquant.ops.kernel_presence import announce_kernel
from duquant.ops.numbered_weights import NumberedWeight, entered


class FbgemmWeight(NumberedWeight):
    """Packed for FBGEMM.

    Args:
        q: signed integers ``int8 (out, in)``.
        split: see :class:`NumberedWeight`.
    """

    def __init__(self, q: Tensor, *, split: bool) -> None:
        ones = torch.ones(q.shape[0], dtype=torch.float64, device=q.device)
        zeros = torch.zeros(q.shape[0], dtype=torch.int64, device=q.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch marks eager quantization as frozen
            weight = torch._make_per_channel_quantized_tensor(q, ones, zeros, 0)
            layout = torch.ops.quantized.linear_prepack(weight, None)
        super().__init__(q, layout, fbgemm_product, split=split)

    def integers(self) -> Tensor:
        """As they were given."""
        weight, _ = torch.ops.quantized.linear_unpack(self.layout)
        integers: Tensor = weight.int_repr()
        return integers


def multiply(q: Tensor, number: Tensor, out_features: int) -> Tensor:
    """``uint8 (rows, in)`` by the weight of that number; float32 ``(rows, out)``."""
    result: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        q.float(), 1.0, 0, entered(number).layout
    )
    return result


fbgemm_product = torch.library.custom_op("duquant::fbgemm_product", multiply, mutates_args=())
announce_kernel("duquant::fbgemm_product", "cpu", lambda: True, multiply)


@fbgemm_product.register_fake
def _(q: Tensor, number: Tensor, out_features: int) -> Tensor:
    return q.new_empty(*q.shape[:-1], out_features, dtype=torch.float32)
