"""Exact integer products by oneDNN's int8 operators, which use AMX on processors that have it.

``torch.ops.onednn.qlinear_pointwise`` multiplies unsigned activations by signed weights, adds up in
32 bits and returns float32; scales are one and zero points zero here. As with FBGEMM, the sums of a
call stay below ``2**24``, and where two neighbouring products may share a signed 16-bit register
(processors without VNNI) activations of 8 bits are split into halves when the weight has 8 too.

Which instructions oneDNN takes depends on the processor, on the shape and on its own environment
variables. So nothing is believed: the engine is used after it has multiplied the largest integers
without an error in this process, and only in the widths in which it has.
"""

import functools

import torch
from torch import Tensor

from duquant.ops.kernel_presence import announce_kernel
from duquant.ops.numbered_weights import NumberedWeight, entered

SAFE_BITS, ALL_BITS = 15, 16
"""Bits of a product of which two always, and of which two rarely, fit into 16 with a sign."""
USUAL_ROWS = 128
"""Rows that the layout is chosen for; others are multiplied as exactly."""
TESTED_ROWS = (1, 2, 17, 129)
TESTED_SIZES = ((5, 64), (33, 514), (256, 130), (1, 3))
"""Outputs and inputs of the self-test: whole vectors and remainders of them."""


class OnednnWeight(NumberedWeight):
    """Laid out for oneDNN.

    Args:
        q: signed integers ``int8 (out, in)``.
        split: see :class:`NumberedWeight`.
    """

    def __init__(self, q: Tensor, *, split: bool) -> None:
        super().__init__(q, _laid_out(q), onednn_product, split=split)

    def integers(self) -> Tensor:
        """As they were given."""
        integers: Tensor = self.layout.to_dense().t().contiguous()
        return integers


def multiply(q: Tensor, number: Tensor, out_features: int) -> Tensor:
    """``uint8 (rows, in)`` by the weight of that number; float32 ``(rows, out)``."""
    return _multiplied(q, entered(number).layout)


onednn_product = torch.library.custom_op("duquant::onednn_product", multiply, mutates_args=())
announce_kernel("duquant::onednn_product", "cpu", lambda: True, multiply)


@onednn_product.register_fake
def _(q: Tensor, number: Tensor, out_features: int) -> Tensor:
    return q.new_empty(*q.shape[:-1], out_features, dtype=torch.float32)


@functools.cache
def exact_bits() -> int:
    """Most bits, of an activation and a weight together, that it multiplies in one go; 0: none."""
    operators = torch.ops.onednn
    has_operators = all(
        hasattr(operators, name) for name in ("qlinear_prepack", "qlinear_pointwise")
    )
    if not (torch.backends.mkldnn.is_available() and has_operators):
        return 0
    try:
        if not _is_exact(SAFE_BITS):
            return 0
        # With AVX2 alone some shapes may have other instructions than those that were tested.
        has_wide_vectors = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        return ALL_BITS if has_wide_vectors and _is_exact(ALL_BITS) else SAFE_BITS
    except RuntimeError:  # another PyTorch's operator, or one built without it
        return 0


def _is_exact(bits: int) -> bool:
    """Multiply the integers that are largest in size and compare with plain arithmetic."""
    largest = 2 ** (bits - 9)  # of a weight below zero, beside activations of 8 bits
    for out, columns in TESTED_SIZES:
        counted = torch.arange(out * columns, device="cpu").view(out, columns)
        weight = counted.remainder(2 * largest).sub(largest).to(torch.int8)
        weight[::3], weight[1::3] = -largest, largest - 1
        packed = _laid_out(weight)
        if not torch.equal(packed.to_dense().t(), weight):
            return False
        for rows in TESTED_ROWS:
            q = torch.full((rows, columns), 255, dtype=torch.uint8, device="cpu")
            q[1::2] = counted.view(-1)[:columns].remainder(256).to(torch.uint8)
            if not torch.equal(_multiplied(q, packed).long(), q.long() @ weight.long().t()):
                return False
    return True


def _laid_out(q: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(q.contiguous(), [USUAL_ROWS, q.shape[1]])
    return packed


def _multiplied(q: Tensor, packed: Tensor) -> Tensor:
    one = torch.ones(1, dtype=torch.float32, device=q.device)
    zero = torch.zeros(1, dtype=torch.int64, device=q.device)
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        q.contiguous(), 1.0, 0, packed, one, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product
