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
from duquant.ops.fake_quantize import quantize_rows
from duquant.ops.kernel_presence import announce_kernel
from duquant.ops.kernels import int4, rows, screen, transform
from duquant.ops.kernels import scaled_sums as sums
from duquant.ops.packed_product import packed_linear, packed_product
from duquant.ops.quantized_tokens import quantized_tokens
from duquant.ops.rows_gradient import rows_gradient
from duquant.ops.scaled_sums import scaled_sums
from duquant.ops.screen import screen_rows
from duquant.ops.transformed_tokens import transformed_tokens, transformed_values
from duquant.ops.triton_kernels import int4 as triton_int4
from duquant.ops.triton_kernels import rows as triton_rows
from duquant.ops.triton_kernels import scaled_sums as triton_sums
from duquant.ops.triton_kernels import transform as triton_transform
from duquant.ops.triton_kernels import transformed as triton_transformed


class Operator(Protocol):
    """What ``torch.library.custom_op`` makes of a function."""

    @property
    def _qualname(self) -> str: ...

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
        is_available: whether this machine runs it; a kernel that is not available still computes
            the operator, by its definition.
    """

    operator: Operator
    device: str
    function: Callable[..., Any]
    is_available: Callable[[], bool]


KERNELS = (
    Kernel(transform_rows, "cpu", transform.transform_rows, transform.is_available),
    Kernel(transformed_tokens, "cpu", transform.transformed_tokens, transform.is_available),
    Kernel(transformed_values, "cpu", transform.transformed_values, transform.is_available),
    Kernel(quantize_rows, "cpu", rows.fake_quantize_rows, rows.is_available),
    Kernel(rows_gradient, "cpu", rows.quantize_rows_gradient, rows.is_available),
    Kernel(quantized_tokens, "cpu", rows.quantize_tokens, rows.is_available),
    Kernel(packed_product, "cpu", int4.packed_product, int4.is_available),
    Kernel(packed_linear, "cpu", int4.packed_linear, int4.is_available),
    Kernel(scaled_sums, "cpu", sums.scaled_sums, sums.is_available),
    Kernel(screen_rows, "cpu", screen.screen_rows, screen.is_available),
    Kernel(transform_rows, "cuda", triton_transform.transform_rows, triton_transform.is_available),
    Kernel(
        transformed_tokens,
        "cuda",
        triton_transformed.transformed_tokens,
        triton_transformed.is_available,
    ),
    Kernel(
        transformed_values,
        "cuda",
        triton_transformed.transformed_values,
        triton_transformed.is_available,
    ),
    Kernel(quantize_rows, "cuda", triton_rows.fake_quantize_rows, triton_rows.is_available),
    Kernel(rows_gradient, "cuda", triton_rows.quantize_rows_gradient, triton_rows.is_available),
    Kernel(quantized_tokens, "cuda", triton_rows.quantize_tokens, triton_rows.is_available),
    Kernel(packed_product, "cuda", triton_int4.packed_product, triton_int4.is_available),
    Kernel(packed_linear, "cuda", triton_int4.packed_linear, triton_int4.is_available),
    Kernel(scaled_sums, "cuda", triton_sums.scaled_sums, triton_sums.is_available),
)

for _kernel in KERNELS:
    _kernel.operator.register_kernel(_kernel.device)(_kernel.function)
    announce_kernel(
        _kernel.operator._qualname, _kernel.device, _kernel.is_available, _kernel.function
    )
