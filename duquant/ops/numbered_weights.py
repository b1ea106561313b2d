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
