"""Working on a large activation chunk by chunk.

On a processor a temporary tensor of many megabytes comes fresh from the operating system, which
clears every page of it first, and leaves the cache before it is read again. A chunk of it is taken
from memory that was used before and stays in the cache. Rows do not depend on each other in what is
done here, so the numbers are the same.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from duquant.ops.gradient import records_gradient

FLOATS_AT_ONCE = 1 << 20
"""Entries of a chunk."""


def in_chunks(work: Callable[[Tensor], Tensor], x: Tensor, dim: int) -> Tensor:
    """``work(x)``, computed chunk by chunk along ``dim`` where that helps.

    It does on a processor, unless a graph is being compiled or a gradient recorded.
    """
    size = x.shape[dim]
    at_once = max(1, FLOATS_AT_ONCE * size // max(1, x.numel()))
    is_recorded = torch.compiler.is_compiling() or records_gradient(x)
    if is_recorded or x.device.type != "cpu" or at_once >= size:
        return work(x)
    return torch.cat([work(chunk) for chunk in x.split(at_once, dim)], dim)
