"""How a finished layer computes: in floating point or in integers, and what it keeps in memory."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import nn

from duquant.formats.integer import Integer
from duquant.formats.number_format import NumberFormat
from duquant.ops.integer_product import WIDEST_BITS, engine
from duquant.ops.integer_weight import Kernels

Backend = Literal["auto", "reference", "integer"]
WeightsInMemory = Literal["fast", "packed"]
FEWEST_INPUTS_PER_SCALE = 512
"""The rule where nothing was measured: with fewer, the integer product falls into chunks that cost
more than they save."""
PROCESSOR = "cpu"
"""Devices of another type are accelerators, whose memory is their own."""


@dataclass(frozen=True)
class Choice:
    """What was faster on this machine, for linears of one kind.

    Args:
        is_integer: whether ``auto`` takes integers.
        kernels: for integers, by ``ROW_COUNTS`` of :mod:`duquant.ops.integer_weight`.
        device_type: where it was measured.
    """

    is_integer: bool
    kernels: Kernels
    device_type: str = PROCESSOR

    def holds_on(self, device: torch.device) -> bool:
        """Whether it says something about a device: a processor's says nothing of a GPU."""
        return device.type == self.device_type


@dataclass(frozen=True)
class Execution:
    """A choice of backend and of memory.

    Args:
        backend: ``reference`` dequantizes and multiplies in floating point, as calibration did;
            ``integer`` multiplies the integers themselves; ``auto`` takes ``integer`` where the
            device has int8 units, the widths fit and it is faster, else ``reference``.
        weights_in_memory: ``fast`` keeps the form that the backend multiplies by (int8, or floats);
            ``packed`` keeps what the file holds and unpacks it at every use.
    """

    backend: Backend = "auto"
    weights_in_memory: WeightsInMemory = "fast"

    def __post_init__(self) -> None:
        """Check the choices."""
        for option, choices in zip(fields(self), (Backend, WeightsInMemory), strict=True):
            value = getattr(self, option.name)
            if value not in get_args(choices):
                raise ValueError(
                    f"{option.name} is {value!r}; it must be one of {', '.join(get_args(choices))}"
                )

    def is_integer(
        self,
        device: torch.device,
        *,
        activations: NumberFormat,
        weights: NumberFormat,
        columns: int,
        choice: Choice | None = None,
    ) -> bool:
        """Whether a linear computes in integers.

        Args:
            device: where it computes.
            activations: number format of its input.
            weights: number format of its weight.
            columns: inputs that share a scale.
            choice: what was measured on this device; without it a fixed rule decides.

        Raises:
            ValueError: if integers were asked for and are impossible, with the reason.
        """
        if self.backend == "reference":
            return False
        reason = obstacle(device, activations, weights)
        if self.backend == "integer" and reason is not None:
            raise ValueError(f"the integer backend cannot run here: {reason}; use 'reference'")
        if reason is not None or self.backend == "integer":
            return reason is None
        return columns >= FEWEST_INPUTS_PER_SCALE if choice is None else choice.is_integer


def obstacle(device: torch.device, activations: NumberFormat, weights: NumberFormat) -> str | None:
    """Why integers of these formats cannot be multiplied on a device, if so."""
    if engine(device) is None:
        return f"{device} has no int8 matrix product"
    if max(activations.bits, weights.bits) > WIDEST_BITS:
        return (
            f"weights of {weights.bits} and activations of {activations.bits} bits do not both "
            f"fit into {WIDEST_BITS}"
        )
    if not (isinstance(weights, Integer) and isinstance(activations, Integer)):
        return f"{weights.name} and {activations.name} are not both integers"
    if activations.group_size is not None:
        return f"groups of {activations.group_size} activations have scales of their own"
    return None


@dataclass(frozen=True)
class Reader:
    """What decides whether a linear takes integers; all readers of a site agree.

    Args:
        execution: the user's choice.
        activations: number format of the input.
        weights: number format of the weight.
        columns: inputs that share a scale.
        choice: what was measured, if something was.
    """

    execution: Execution
    activations: NumberFormat
    weights: NumberFormat
    columns: int
    choice: Choice | None = None

    def is_integer_on(self, device: torch.device) -> bool:
        """Whether it takes integers on a device.

        Raises:
            ValueError: as :meth:`Execution.is_integer`.
        """
        return self.execution.is_integer(
            device,
            activations=self.activations,
            weights=self.weights,
            columns=self.columns,
            choice=self.choice if self.choice and self.choice.holds_on(device) else None,
        )


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate lends a module its tensors for the time of a forward pass only."""
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(each, "offload", False) for each in getattr(hook, "hooks", [hook]))
