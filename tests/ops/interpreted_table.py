"""Every Triton kernel beside its operator's definition, in Triton's interpreter.

The cases are those that kernels of every kind pass (``test_kernel_table.py``), some four for each,
because the interpreter is slow. ``test_triton_kernels.py`` runs this file in a process of its own.
"""

from contextlib import nullcontext

import pytest
import torch

from duquant.ops.kernels.table import KERNELS, Kernel
from tests.ops.kernel_cases import CASES
from tests.ops.test_kernel_table import disabled, name_of, results

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities
TRUNCATED = 2.0**-7
"""The interpreter cuts bfloat16 off where a GPU rounds it."""
ROWS = [row._replace(device="cpu") for row in KERNELS if row.device == "cuda"]


@pytest.fixture(params=ROWS, ids=name_of)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """A kernel for CUDA in the place of that for the CPU, until this process ends."""
    row: Kernel = request.param
    assert row.is_available()
    row.operator.register_kernel("cpu")(row.function)
    return row


def test_every_kernel_is_its_operator(kernel: Kernel) -> None:
    cases = list(CASES[name_of(kernel)]())
    for case in cases[:: len(cases) // 4 | 1]:
        found = results(kernel, case, nullcontext())
        expected = results(kernel, case, disabled(kernel))
        for ours, theirs, error in zip(found, expected, case.error, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert one.stride() == other.stride(), case.name
                is_half = other.dtype == torch.bfloat16 and other.numel() > 0
                largest = float(other.abs().max()) if is_half else 0
                torch.testing.assert_close(
                    one,
                    other,
                    rtol=1e-4 if error else TRUNCATED if is_half else 0,
                    atol=error + TRUNCATED * largest,
                    equal_nan=True,
                    msg=lambda m: f"{case.name}: {m}",  # noqa: B023
                )
