"""Every kernel: which operator it computes, on which device.

An operator is a ``torch.library.custom_op`` whose body is the definition in PyTorch's operations,
whose gradient is registered with it, and which therefore works on every device. A kernel is a
function with the same arguments that computes the same faster. Where it cannot (a shape, a dtype, a
machine without a compiler) it calls the definition itself, so nobody who uses an operator asks
whether there is a kernel.

``tests/ops/test_kernel_table.py`` compares every row with its operator's definition.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from duquant.ops.dual_transform import transform_rows
from duquant.ops.kernels import transform


class Operator(Protocol):
    """What ``torch.library.custom_op`` makes of a function."""

    def __call__(self, *arguments: Any) -> Any:
        """Compute it, by a kernel where there is one for the device of the arguments."""

    def register_kernel(self, device_types: str, /) -> Callable[[Callable[..., Any]], Any]:
        """Name the function that computes it on a device."""


class Kernel(NamedTuple):
    """One row.

    Attributes:
        operator: what it computes.
        device: type of the tensors it is called with, ``cpu`` or ``cuda``.
        function: the kernel.
    """

    operator: Operator
    device: str
    function: Callable[..., Any]


KERNELS = (Kernel(transform_rows, "cpu", transform.transform_rows),)

for _kernel in KERNELS:
    _kernel.operator.register_kernel(_kernel.device)(_kernel.function)
