"""What a compiler sees of an operator: itself, or the operations that define it.

A graph that ``torch.compile`` makes holds an operator as one opaque step. That is right where a
kernel computes it. Where none does, the compiler fuses the operations of its definition with those
around them, which is faster than running them one by one.
"""

import torch


def is_inlined(operator: str, device: torch.device) -> bool:
    """Whether to run an operator's definition, because a graph is compiled that has no kernel.

    Args:
        operator: its name without ``duquant::``.
        device: of its tensors.
    """
    return torch.compiler.is_compiling() and not _has_kernel(operator, device.type)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_kernel(operator: str, device: str) -> bool:
    from duquant.ops.kernels.table import has_kernel  # which imports the operators

    return has_kernel(operator, device)
