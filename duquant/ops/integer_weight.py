"""Weights of small integers as they lie in memory, and what multiplies them there."""

import itertools
from typing import Literal, Protocol

from torch import Tensor

from duquant.ops.kernel_presence import call
from duquant.ops.numbered_weights import enter
from duquant.ops.packed_product import packed_integers, packed_product

KernelName = Literal["packed", "fbgemm", "onednn", "cuda"]
Kernels = tuple[KernelName, ...]
"""The kernel for each of ``ROW_COUNTS``."""
ROW_COUNTS = (1, 16, 128)
"""Numbers of tokens that kernels are chosen for: decoding, many answers at once, a prompt."""


class IntegerWeight(Protocol):
    """A weight in the layout of an engine."""

    num_bytes: int
    """What it takes in memory."""

    def product(self, q: Tensor) -> Tensor:
        """``uint8 (rows, in)`` -> exact integers ``(rows, out)``, as float32 or int32."""

    def integers(self) -> Tensor:
        """The signed integers, ``int8 (out, in)``, as they were given."""


def row_class(rows: int) -> int:
    """Index of the nearest of ``ROW_COUNTS``, by logarithms."""
    return sum(rows * rows > a * b for a, b in itertools.pairwise(ROW_COUNTS))


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


class ChosenWeight:
    """Lies in memory twice: packed, and laid out for another kernel.

    Args:
        packed: for some numbers of tokens.
        laid_out: for the others.
        kernels: which, for each of ``ROW_COUNTS``.
    """

    def __init__(self, packed: PackedWeight, laid_out: IntegerWeight, kernels: Kernels) -> None:
        self.packed = packed
        self.laid_out = laid_out
        self.kernels = kernels
        self.num_bytes = laid_out.num_bytes
        self.number = enter(self)

    def at(self, rows: int) -> IntegerWeight:
        """What multiplies so many tokens."""
        return self.packed if self.kernels[row_class(rows)] == "packed" else self.laid_out

    def product(self, q: Tensor) -> Tensor:
        """Exact integers, see :class:`IntegerWeight`."""
        return self.at(q.shape[0]).product(q)

    def integers(self) -> Tensor:
        """Unpacked, signed."""
        return self.packed.integers()
