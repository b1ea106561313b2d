"""Which operators have a kernel here: for what is prepared long before an operator runs.

Whoever calls an operator need not ask. A compiled graph and the layout of a weight depend on it.
``torch.compile`` makes one opaque step of an operator. That is right where a kernel computes it;
where none does, the compiler fuses the operations of its definition with those around them, which
is faster than running them one by one.
"""

from collections.abc import Callable

import torch

_ANNOUNCED: dict[tuple[str, str], Callable[[], bool]] = {}


def announce_kernel(operator: str, device: str, is_available: Callable[[], bool]) -> None:
    """Say that an operator has a kernel: :mod:`duquant.ops.kernels.table` does for its rows.

    Args:
        operator: its name with ``duquant::``.
        device: type of the tensors it is called with.
        is_available: whether this machine runs it.
    """
    _ANNOUNCED[operator, device] = is_available


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
    return torch.compiler.is_compiling() and not _is_present(operator, device.type)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_present(operator: str, device: str) -> bool:
    return has_kernel(operator, device)
