"""Which operators have a kernel here, and the short way to it.

Whoever calls an operator need not ask. PyTorch takes some 40 µs to find a kernel that is written in
Python, as long as a kernel of ours computes for a few tokens, so :func:`call` calls it itself where
nothing else can be meant: no gradient is recorded, no graph is compiled or traced.

A compiled graph and the layout of a weight depend on what there is. ``torch.compile`` makes one
opaque step of an operator. That is right where a kernel computes it; where none does, the compiler
fuses the operations of its definition with those around them, which is faster than running them one
by one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

_ANNOUNCED: dict[tuple[str, str], Callable[[], bool]] = {}
_KERNELS: dict[tuple[str, str], Callable[..., Any]] = {}


def announce_kernel(
    operator: str, device: str, is_available: Callable[[], bool], kernel: Callable[..., Any]
) -> None:
    """Say that an operator has a kernel: :mod:`duquant.ops.kernels.table` does for its rows.

    Args:
        operator: its name with ``duquant::``.
        device: type of the tensors it is called with.
        is_available: whether this machine runs it.
        kernel: the function that computes it.
    """
    _ANNOUNCED[operator, device] = is_available
    _KERNELS[operator, device] = kernel


def call(operator: Any, *arguments: Any) -> Any:
    """An operator of :func:`torch.library.custom_op`, by its kernel itself where that is the same.

    Args:
        operator: what to call.
        arguments: of it, a tensor first.
    """
    if torch.compiler.is_compiling():
        return operator(*arguments)
    kernel = _KERNELS.get((operator._qualname, arguments[0].device.type))
    if kernel is None or _is_watched(arguments):
        return operator(*arguments)
    return kernel(*arguments)


def _is_watched(arguments: tuple[Any, ...]) -> bool:
    """Whether somebody records, traces or replaces what is computed with these."""
    if _get_current_dispatch_mode() is not None or torch._C._functorch.maybe_current_level():
        return True
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors):
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def has_kernel(operator: str, device: str) -> bool:
    """Whether a kernel computes an operator here.

    Args:
        operator: its name without ``duquant::``.
        device: type of its tensors.
    """
    is_available = _ANNOUNCED.get((f"duquant::{operator}", device))
    return is_available is not None and is_available()


def is_inlined(operator: str, device: torch.device) -> bool:
    """Whether to run an operator's definition, because a graph is compiled that has no kernel.

    Args:
        operator: its name without ``duquant::``.
        device: of its tensors.
    """
    return torch.compiler.is_compiling() and not is_present(operator, device.type)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_present(operator: str, device: str) -> bool:
    """:func:`has_kernel`, which a compiled graph takes for a constant."""
    return has_kernel(operator, device)
