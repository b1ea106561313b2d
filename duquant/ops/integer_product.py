"""Matrix products of small integers, exact, on the hardware's int8 units.

An activation row holds integers ``q_x`` in ``0 … 2**a - 1``, a weight row ``q_w`` in ``0 … 2**w -
1``, each with its zero point. The linear layer is

    Σₖ (q_x − z_x) s_x · (q_w − z_w) s_w
        = s_x s_w · [ Σ q_x q'_w  −  z_x Σ (q'_w − z'_w)  −  z'_w Σ q_x ]

with ``q'_w = q_w − 2**(w-1)`` and ``z'_w = z_w − 2**(w-1)``, because int8 units multiply unsigned
activations by *signed* weights. Only the first sum is a matrix product; the second is known when
the weight is prepared, the third is a row sum.

Engines: for packed 4-bit weights on x86 our own (:mod:`duquant.ops.packed_product`); otherwise
PyTorch's FBGEMM kernels on x86 (AVX2, AVX512, VNNI) and ``torch._int_mm`` on CUDA. Two limits of
FBGEMM decide how the work is cut:

* it returns float32, which counts exactly to ``2**24``: ``columns_at_once`` keeps every sum below;
* without VNNI two neighbouring products share a signed 16-bit register, which 8-bit times 8-bit
  overflows: such activations are split into halves of four bits, ``q_x = 16 h + l``.
"""

import warnings
import weakref
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from duquant.ops.kernel_presence import call, has_kernel
from duquant.ops.packed_product import (
    LARGEST_ACTIVATION,
    PACKED_BITS,
    packed_integers,
    packed_product,
)

WIDEST_BITS = 8
"""Widest integers these units multiply."""
EXACT_FLOAT32 = 1 << 24
REGISTER_BITS = 15
MULTIPLE, SMALLEST_ROWS = 8, 17
"""``torch._int_mm`` on CUDA: sizes are multiples of 8, and there are more than 16 rows."""

UNSIGNED_SHIFT = 128
"""It multiplies signed by signed: ``0 … 255`` is shifted to ``-128 … 127``."""


class IntegerWeight(Protocol):
    """A weight in the layout of an engine."""

    num_bytes: int
    """What it takes in memory."""

    def product(self, q: Tensor) -> Tensor:
        """``uint8 (rows, in)`` -> exact integers as float32 ``(rows, out)``."""

    def integers(self) -> Tensor:
        """The signed integers, ``int8 (out, in)``, as they were given."""


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


def prepare_weight(q: Tensor, *, activation_bits: int, weight_bits: int) -> IntegerWeight:
    """Lay out a weight for the int8 engine of its device.

    Args:
        q: signed integers ``int8 (out, in)``.
        activation_bits: width of the integers it will meet.
        weight_bits: width of its own.

    Raises:
        ValueError: if the device has no such engine.
    """
    kind = engine(q.device)
    if kind is None:
        raise ValueError(f"{q.device} has no int8 matrix product; use backend='reference'")
    if kind == "cuda":
        return _CudaWeight(q)
    return _FbgemmWeight(q, split=activation_bits + weight_bits > REGISTER_BITS)


def prepare_packed(
    packed: Tensor, *, activation_bits: int, weight_bits: int, columns: int
) -> IntegerWeight | None:
    """A weight multiplied as it is packed; ``None`` where there is no kernel for it.

    Args:
        packed: ``uint8 (out, packed width)``, kept as it is and not copied.
        activation_bits: width of the integers it will meet.
        weight_bits: width of its own.
        columns: inputs, all of which share a scale.
    """
    bits: dict[str, int] = {"activation_bits": activation_bits, "weight_bits": weight_bits}
    if not reads_packed(**bits, columns=columns, device_type=packed.device.type):
        return None
    return PackedWeight(packed, largest=2**activation_bits - 1)


def reads_packed(*, activation_bits: int, weight_bits: int, columns: int, device_type: str) -> bool:
    """Whether :func:`prepare_packed` takes such a weight on such a device."""
    return (
        weight_bits == PACKED_BITS
        and 2**activation_bits - 1 <= LARGEST_ACTIVATION
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
    return weight.product(ones).squeeze(0) - columns * zero


class PackedWeight:
    """Multiplied where it lies.

    Args:
        packed: ``uint8 (out, packed width)``, not copied.
        largest: largest activation it will meet.
    """

    num_bytes = 0
    """Nothing beside the packed weight."""

    def __init__(self, packed: Tensor, *, largest: int) -> None:
        self.packed = packed
        self.largest = largest

    def product(self, q: Tensor) -> Tensor:
        """Exact integers as float32."""
        product: Tensor = call(packed_product, q, self.packed, self.largest)
        return product

    def integers(self) -> Tensor:
        """Unpacked, signed."""
        return packed_integers(self.packed, 2 * self.packed.shape[1])


class _FbgemmWeight:
    """Packed for FBGEMM; the packed object is opaque, so compiled graphs know it by a number.

    The number holds in this process: :class:`duquant.nn.packed_linear.PackedLinear` copies and
    pickles its packed integers instead.
    """

    def __init__(self, q: Tensor, *, split: bool) -> None:
        self.split = split
        self.out_features = q.shape[0]
        self.num_bytes = q.nbytes
        ones = torch.ones(q.shape[0], dtype=torch.float64, device=q.device)
        zeros = torch.zeros(q.shape[0], dtype=torch.int64, device=q.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch marks eager quantization as frozen
            weight = torch._make_per_channel_quantized_tensor(q, ones, zeros, 0)
            self.packed = torch.ops.quantized.linear_prepack(weight, None)
        self.number = id(self)
        _PACKED[self.number] = self

    def product(self, q: Tensor) -> Tensor:
        if not self.split:
            return self._multiply(q)
        return self._multiply(q & 15).add_(self._multiply(q >> 4), alpha=16)

    def _multiply(self, q: Tensor) -> Tensor:
        product: Tensor = _fbgemm_product(q, self.number, self.out_features)
        return product

    def integers(self) -> Tensor:
        weight, _ = torch.ops.quantized.linear_unpack(self.packed)
        integers: Tensor = weight.int_repr()
        return integers


_PACKED: weakref.WeakValueDictionary[int, _FbgemmWeight] = weakref.WeakValueDictionary()


@torch.library.custom_op("duquant::fbgemm_product", mutates_args=())
def _fbgemm_product(q: Tensor, number: int, out_features: int) -> Tensor:
    result: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        q.float(), 1.0, 0, _PACKED[number].packed
    )
    return result


@_fbgemm_product.register_fake
def _(q: Tensor, number: int, out_features: int) -> Tensor:
    return q.new_empty(*q.shape[:-1], out_features, dtype=torch.float32)


class _CudaWeight:
    """Padded to the multiples ``torch._int_mm`` asks for."""

    def __init__(self, q: Tensor) -> None:
        self.shape = q.shape
        padding = (0, -q.shape[1] % MULTIPLE, 0, -q.shape[0] % MULTIPLE)
        self.weight = F.pad(q, padding)
        self.num_bytes = self.weight.nbytes
        self.shifted = UNSIGNED_SHIFT * q.sum(dim=1, dtype=torch.int32)

    def product(self, q: Tensor) -> Tensor:
        rows, (out, columns) = q.shape[0], self.shape
        signed = (q.to(torch.int16) - UNSIGNED_SHIFT).to(torch.int8)
        signed = F.pad(signed, (0, -columns % MULTIPLE, 0, max(0, SMALLEST_ROWS - rows)))
        product = torch._int_mm(signed, self.weight.t())[:rows, :out]
        return (product + self.shifted).float()

    def integers(self) -> Tensor:
        return self.weight[: self.shape[0], : self.shape[1]]
