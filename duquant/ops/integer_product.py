"""Matrix products of small integers, exact, on the hardware's int8 units.

An activation row holds integers ``q_x`` in ``0 … 2**a - 1``, a weight row ``q_w`` in ``0 … 2**w -
1``, each with its zero point. The linear layer is

    Σₖ (q_x − z_x) s_x · (q_w − z_w) s_w
        = s_x s_w · [ Σ q_x q'_w  −  z_x Σ (q'_w − z'_w)  −  z'_w Σ q_x ]

with ``q'_w = q_w − 2**(w-1)`` and ``z'_w = z_w − 2**(w-1)``, because int8 units multiply unsigned
activations by *signed* weights. Only the first sum is a matrix product; the second is known when
the weight is prepared, the third is a row sum.

Kernels, all exact, so that none changes a bit of what another computes:

| kernel | where | the weight lies there |
|---|---|---|
| ``packed`` | x86 with AVX2 and a C compiler, CUDA (:mod:`duquant.ops.packed_product`) | packed |
| ``fbgemm`` | x86, PyTorch's FBGEMM (AVX2, AVX512, VNNI) | as bytes, laid out |
| ``onednn`` | x86, PyTorch's oneDNN (the same, and AMX), if its self-test passes | likewise |
| ``cuda`` | CUDA, ``torch._int_mm`` | as bytes |

Without a choice, ``packed`` is taken where it can be, else ``fbgemm`` or ``cuda``. Two limits
decide how the work is cut:

* results are float32, which counts exactly to ``2**24``: ``columns_at_once`` keeps every sum below;
* without VNNI two neighbouring products share a signed 16-bit register, which 8-bit times 8-bit
  overflows: such activations are split into halves of four bits, ``q_x = 16 h + l``.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from duquant.ops.fbgemm_product import FbgemmWeight
from duquant.ops.integer_weight import IntegerWeight, KernelName
from duquant.ops.kernel_presence import has_kernel
from duquant.ops.onednn_product import OnednnWeight, exact_bits
from duquant.ops.packed_product import LARGEST_ACTIVATION, LARGEST_ON_PROCESSORS, PACKED_BITS

WIDEST_BITS = 8
"""Widest integers these units multiply."""
EXACT_FLOAT32 = 1 << 24
REGISTER_BITS = 15
MULTIPLE, SMALLEST_ROWS = 8, 17
"""``torch._int_mm`` on CUDA: sizes are multiples of 8, and there are more than 16 rows."""

UNSIGNED_SHIFT = 128
"""It multiplies signed by signed: of 8 bits, ``0 … 255`` is shifted to ``-128 … 127``."""


def engine(device: torch.device) -> str | None:
    """Name of the int8 engine of a device; ``None`` if there is none.

    x86 processors have FBGEMM, CUDA devices of compute capability 7.5 and up have int8 units.
    """
    if device.type == "cpu":
        available: str = torch.backends.quantized.engine
        return "fbgemm" if available in ("x86", "fbgemm") else None
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 5):
        return "cuda"
    return None


def columns_at_once(activation_bits: int, weight_bits: int) -> int:
    """Most columns whose products sum to less than ``2**24``."""
    largest_product: int = (2**activation_bits - 1) * 2 ** (weight_bits - 1)
    return (EXACT_FLOAT32 - 1) // largest_product


def layout_kernels(device: torch.device) -> list[KernelName]:
    """Kernels that multiply a weight laid out as bytes; the first is taken without a choice."""
    kind = engine(device)
    if kind is None:
        return []
    if kind == "cuda":
        return ["cuda"]
    return ["fbgemm", "onednn"] if exact_bits() else ["fbgemm"]


def prepare_weight(
    q: Tensor, *, activation_bits: int, weight_bits: int, kernel: KernelName | None = None
) -> IntegerWeight:
    """Lay out a weight for an int8 engine of its device.

    Args:
        q: signed integers ``int8 (out, in)``.
        activation_bits: width of the integers it will meet.
        weight_bits: width of its own.
        kernel: one of :func:`layout_kernels`; the first if it is none of them.

    Raises:
        ValueError: if the device has no such engine.
    """
    kernels = layout_kernels(q.device)
    if not kernels:
        raise ValueError(f"{q.device} has no int8 matrix product; use backend='reference'")
    kernel = kernel if kernel in kernels else kernels[0]
    bits = activation_bits + weight_bits
    if kernel == "cuda":
        return _CudaWeight(q, shifts=activation_bits == WIDEST_BITS)
    if kernel == "onednn":
        return OnednnWeight(q, split=bits > exact_bits())
    return FbgemmWeight(q, split=bits > REGISTER_BITS)


def reads_packed(*, activation_bits: int, weight_bits: int, columns: int, device_type: str) -> bool:
    """Whether a kernel multiplies such a weight as it is packed.

    Args:
        activation_bits: width of the integers it meets.
        weight_bits: width of its own.
        columns: inputs, all of which share a scale.
        device_type: where it is.
    """
    largest = LARGEST_ON_PROCESSORS if device_type == "cpu" else LARGEST_ACTIVATION
    return (
        weight_bits == PACKED_BITS
        and 2**activation_bits - 1 <= largest
        and columns % 2 == 0
        and columns <= columns_at_once(activation_bits, weight_bits)
        and has_kernel("packed_linear", device_type)  # else another layout is faster
    )


def weight_sums(weight: IntegerWeight, columns: int, zero: Tensor) -> Tensor:
    """``Σ (q'_w − z'_w)`` of every row, float32 ``(out,)``, from one product with ones.

    Args:
        weight: the prepared weight.
        columns: its inputs.
        zero: ``z'_w``, ``(out,)``.
    """
    ones = torch.ones(1, columns, dtype=torch.uint8, device=zero.device)
    return weight.product(ones).float().squeeze(0) - columns * zero


class _CudaWeight:
    """Padded to the multiples ``torch._int_mm`` asks for.

    Args:
        q: signed integers ``int8 (out, in)``.
        shifts: whether activations have 8 bits, which are multiplied minus 128.
    """

    def __init__(self, q: Tensor, *, shifts: bool) -> None:
        self.shape = q.shape
        padding = (0, -q.shape[1] % MULTIPLE, 0, -q.shape[0] % MULTIPLE)
        self.weight = F.pad(q, padding)
        self.num_bytes = self.weight.nbytes
        self.shifted = UNSIGNED_SHIFT * q.sum(dim=1, dtype=torch.int32) if shifts else None

    def product(self, q: Tensor) -> Tensor:
        rows, (out, _) = q.shape[0], self.shape
        product = torch._int_mm(self._signed(q), self.weight.t())[:rows, :out]
        return product if self.shifted is None else product.add_(self.shifted)

    def integers(self) -> Tensor:
        return self.weight[: self.shape[0], : self.shape[1]]

    def _signed(self, q: Tensor) -> Tensor:
        """Signed activations, aligned: rows of encoded tokens are 6 bytes longer than their inputs.

        Flipping the highest bit subtracts 128, and copies as well.
        """
        codes = q if self.shifted is None else q.bitwise_xor(UNSIGNED_SHIFT)
        padding = (0, -self.shape[1] % MULTIPLE, 0, max(0, SMALLEST_ROWS - q.shape[0]))
        signed = codes.view(torch.int8)
        return F.pad(signed, padding) if any(padding) else signed.contiguous()
