"""Whether values are finite numbers; where they are not, what helps.

The two extremes of a tensor tell, without memory for an answer per value: a NaN anywhere makes both
of them NaN.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

WIDER = {torch.float16: "float32 or bfloat16", torch.bfloat16: "float32"}
"""Dtypes with larger numbers: float16 ends at 65504, bfloat16 shortly before float32."""

DTYPE_OPTION = "--model.dtype"


def is_finite(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether every value is finite, also when it is cast to ``dtype``; integers always are.

    The host waits for the device once.
    """
    if not x.dtype.is_floating_point or not x.numel():
        return True
    return bool(all_finite(x, dtype))


def all_finite(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same of floats, at least one, as a number on their device, which nobody waits for."""
    return torch.stack(x.detach().aminmax()).to(dtype or x.dtype).isfinite().all()


def require_finite(x: Tensor, what: str, dtype: torch.dtype) -> None:
    """Refuse computed values of which some are not finite.

    Args:
        x: the values.
        what: what the message calls them, as in "input values of mlp_output".
        dtype: dtype they were computed in.

    Raises:
        ValueError: naming them, how many they are, and what helps.
    """
    if not is_finite(x):
        undefined = x.numel() - int(x.isfinite().sum())
        raise ValueError(
            f"{undefined} of {x.numel()} {what} are not finite in {_name(dtype)}: {remedy(dtype)}"
        )


def require_each_finite(values: Mapping[str, Callable[[], Tensor]], dtype: torch.dtype) -> None:
    """:func:`require_finite` of several tensors of floats; the host waits once for all of them.

    Args:
        values: by what messages call them, what computes them; all on one device.
        dtype: see :func:`require_finite`.
    """
    if values and not torch.stack([all_finite(make()) for make in values.values()]).all():
        for what, make in values.items():
            require_finite(make(), what, dtype)


def remedy(dtype: torch.dtype, option: str = DTYPE_OPTION) -> str:
    """What helps where numbers of ``dtype`` overflow."""
    if dtype in WIDER:
        return f"compute in another precision, {option} {WIDER[dtype]}"
    return "check the model's weights and its config.json"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
