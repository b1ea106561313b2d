"""What a stored tensor may hold: rules that number formats and transforms give their tensors.

Checksums tell that tensors are those that were written; they do not tell that what was written
makes sense. A scale of zero, a zero point far outside, a permutation that names a channel twice or
one that does not exist would be computed with, or read memory that is not there.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from duquant.ops.finite import is_finite


class ValueRule(NamedTuple):
    """What the values of a stored tensor must be.

    Attributes:
        dtypes: in which they may be stored.
        holds: whether a tensor with entries keeps to the rule.
        wanted: what they must be, in words.
    """

    dtypes: tuple[torch.dtype, ...]
    holds: Callable[[Tensor], bool]
    wanted: str


def in_range(dtype: torch.dtype, lowest: int, highest: int) -> ValueRule:
    """Integers from ``lowest`` to ``highest``."""

    def holds(x: Tensor) -> bool:
        return int(x.min()) >= lowest and int(x.max()) <= highest

    return ValueRule((dtype,), holds, f"from {lowest} to {highest}")


def _is_positive(x: Tensor) -> bool:
    return is_finite(x) and bool(x.min() > 0)


def _is_permutation(permutations: Tensor) -> bool:
    rows = permutations.reshape(-1, permutations.shape[-1]).long()
    channels = torch.arange(rows.shape[1], device=rows.device)
    return torch.equal(rows.sort(dim=1).values, channels.expand_as(rows))


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FINITE = ValueRule(FLOATS, is_finite, "finite")
FINITE_FLOAT32 = ValueRule((torch.float32,), is_finite, "finite")
POSITIVE_FLOAT32 = ValueRule((torch.float32,), _is_positive, "finite and positive")
BYTES = ValueRule((torch.uint8,), lambda _: True, "bytes")
"""Every pattern of bits is a code of its width."""
PERMUTATIONS = ValueRule(
    (torch.int32, torch.int64), _is_permutation, "every channel once, numbered from 0"
)
