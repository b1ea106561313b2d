"""How a finished layer computes: in floating point or in integers, and what it keeps in memory."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import nn

from duquant.formats.integer import Integer
from duquant.formats.number_format import NumberFormat
from duquant.ops.integer_product import WIDEST_BITS, engine

Backend = Literal["auto", "reference", "integer"]
WeightsInMemory = Literal["fast", "packed"]
FEWEST_INPUTS_PER_SCALE = 512
"""With fewer the integer product falls into chunks that cost more than they save."""


@dataclass(frozen=True)
class Execution:
    """A choice of backend and of memory.

    Args:
        backend: ``reference`` dequantizes and multiplies in floating point, as calibration did;
            ``integer`` multiplies the integers themselves; ``auto`` takes ``integer`` where the
            device has int8 units and the widths fit, else ``reference``.
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
    ) -> bool:
        """Whether a linear computes in integers.

        Args:
            device: where it computes.
            activations: number format of its input.
            weights: number format of its weight.
            columns: inputs that share a scale.

        Raises:
            ValueError: if integers were asked for and are impossible, with the reason.
        """
        if self.backend == "reference":
            return False
        reason = None
        if engine(device) is None:
            reason = f"{device} has no int8 matrix product"
        elif max(activations.bits, weights.bits) > WIDEST_BITS:
            reason = (
                f"weights of {weights.bits} and activations of {activations.bits} bits do not both "
                f"fit into {WIDEST_BITS}"
            )
        elif not (isinstance(weights, Integer) and isinstance(activations, Integer)):
            reason = f"{weights.name} and {activations.name} are not both integers"
        elif activations.group_size is not None:
            reason = f"groups of {activations.group_size} activations have scales of their own"
        if reason is not None and self.backend == "integer":
            raise ValueError(f"the integer backend cannot run here: {reason}; use 'reference'")
        is_worthwhile = self.backend == "integer" or columns >= FEWEST_INPUTS_PER_SCALE
        return reason is None and is_worthwhile


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate lends a module its tensors for the time of a forward pass only."""
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(each, "offload", False) for each in getattr(hook, "hooks", [hook]))
