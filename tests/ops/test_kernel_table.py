"""Every kernel of the table beside its operator's definition, over the same hard cases.

A row of ``KERNELS`` needs an entry of ``CASES``, by the name of its operator; a new kernel of an
operator that is there needs nothing. The definition is the operator itself with the kernel of that
device disabled, so gradients are compared as well. It computes on the CPU, whose arithmetic kernels
on a GPU repeat.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from duquant.ops.kernel_presence import _KERNELS, call
from duquant.ops.kernels.table import KERNELS, Kernel
from tests.ops.kernel_cases import CASES, Case

LEFT_TO_PYTORCH = (torch.float64, torch.bfloat16)
"""What most kernels on a GPU leave to the definition, which is rounded there in its own way: a
division by a number is a product with its reciprocal."""
UNTRACED = {"screen_rows"}
"""Operators that no graph holds."""


def name_of(kernel: Kernel) -> str:
    return kernel.operator._qualname.removeprefix("duquant::")


def disabled(kernel: Kernel) -> AbstractContextManager[None]:
    context: AbstractContextManager[None] = kernel.operator.set_kernel_enabled(  # type: ignore[attr-defined]
        kernel.device, enabled=False
    )
    return context


def results(
    kernel: Kernel, case: Case, context: AbstractContextManager[None]
) -> tuple[list[Tensor], list[Tensor]]:
    """Values without and with a gradient recorded, and the gradients."""
    arguments = [
        argument.to(kernel.device).detach() if isinstance(argument, Tensor) else argument
        for argument in case.arguments
    ]
    with context:
        values = case.look(arguments, as_list(kernel.operator(*arguments)))
        if not case.learns:
            return values, []
        leaves = [arguments[index].requires_grad_() for index in case.learns]
        recorded = as_list(kernel.operator(*arguments))
        generator = torch.Generator().manual_seed(7)
        upstream = torch.randn(recorded[0].shape, generator=generator).to(recorded[0])
        gradients = torch.autograd.grad(recorded[0], leaves, upstream)
    return values + [value.detach() for value in recorded], list(gradients)


def as_list(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.fixture(params=KERNELS, ids=lambda kernel: f"{name_of(kernel)} {kernel.device}")
def kernel(request: pytest.FixtureRequest) -> Kernel:
    row: Kernel = request.param
    if row.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return row


def test_every_kernel_is_its_operator(kernel: Kernel) -> None:
    on_cpu = kernel._replace(device="cpu")
    for case in CASES[name_of(kernel)]():
        if kernel.device == "cuda" and case.arguments[0].dtype in LEFT_TO_PYTORCH:
            continue
        found = results(kernel, case, nullcontext())
        expected = results(on_cpu, case, disabled(on_cpu))
        for ours, theirs, error in zip(found, expected, case.error, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert one.stride() == other.stride(), case.name
                torch.testing.assert_close(
                    one.cpu(),
                    other,
                    rtol=1e-4 if error else 0,
                    atol=error,
                    equal_nan=True,
                    msg=lambda m: f"{case.name}: {m}",  # noqa: B023
                )


def test_every_operator_is_sound(kernel: Kernel) -> None:
    """Schema, shapes for tracing and gradients are registered as PyTorch wants them."""
    case = next(CASES[name_of(kernel)]())
    arguments = [
        argument.to(kernel.device).detach().requires_grad_(index in case.learns)
        if isinstance(argument, Tensor)
        else argument
        for index, argument in enumerate(case.arguments)
    ]
    checks = ["test_schema", "test_autograd_registration"]
    if name_of(kernel) not in UNTRACED:
        checks += ["test_faketensor", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(kernel.operator, tuple(arguments), test_utils=checks)


class Watcher(TorchDispatchMode):
    """Sees what PyTorch is asked to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_short_way_to_a_kernel_is_the_operator(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Kernel] = []

    def function(*arguments: Any) -> Any:
        taken.append(kernel)
        return kernel.function(*arguments)

    monkeypatch.setitem(_KERNELS, (kernel.operator._qualname, kernel.device), function)
    for case in CASES[name_of(kernel)]():
        arguments = [
            argument.to(kernel.device) if isinstance(argument, Tensor) else argument
            for argument in case.arguments
        ]
        expected = case.look(arguments, as_list(kernel.operator(*arguments)))
        assert not taken
        found = case.look(arguments, as_list(call(kernel.operator, *arguments)))
        assert taken.pop() is kernel
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        with Watcher() as watcher:
            call(kernel.operator, *arguments)
        assert any(name_of(kernel) in name for name in watcher.seen)
        for index in case.learns[:1]:
            arguments[index] = arguments[index].detach().requires_grad_()
            assert as_list(call(kernel.operator, *arguments))[0].requires_grad
        assert not taken
