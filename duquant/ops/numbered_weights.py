"""Weights whose layout is no ordinary tensor, known to operators by a number.

An operator of a compiled graph takes tensors and plain values. So a layout that is an engine's own
object is entered here, and the operator is given its number, as a tensor: a graph that was compiled
in another process and is loaded from a cache asks for the number that holds in this one.
"""

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

from duquant.ops.kernel_presence import call

_NUMBERS = itertools.count()
_WEIGHTS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def enter(weight: Any) -> Tensor:
    """Give a weight its number, ``int64 (1,)``; it is forgotten when the weight is gone."""
    number = next(_NUMBERS)
    _WEIGHTS[number] = weight
    return torch.tensor([number], dtype=torch.int64, device="cpu")


def entered(number: Tensor) -> Any:
    """The weight of a number."""
    return _WEIGHTS[int(number)]


class NumberedWeight:
    """A weight in an engine's own layout, which PyTorch's operators hold as an opaque object.

    The number holds in this process: :class:`duquant.nn.packed_linear.PackedLinear` copies and
    pickles its packed integers instead.

    Args:
        q: signed integers ``int8 (out, in)``.
        layout: of them, the engine's.
        operator: multiplies tokens by the weight of a number: ``(q, number, out_features)``.
        split: multiply the upper and the lower four bits of an activation by themselves.
    """

    def __init__(self, q: Tensor, layout: Any, operator: Any, *, split: bool) -> None:
        self.split = split
        self.out_features = q.shape[0]
        self.num_bytes = q.nbytes
        self.layout = layout
        self.number = enter(self)
        self._operator = operator

    def product(self, q: Tensor) -> Tensor:
        """Exact integers as float32."""
        if not self.split:
            return self._multiply(q)
        return self._multiply(q & 15).add_(self._multiply(q >> 4), alpha=16)

    def _multiply(self, q: Tensor) -> Tensor:
        product: Tensor = call(self._operator, q, self.number, self.out_features)
        return product
