"""Whether kernels in Triton run on this machine.

They need GPUs of compute capability 8.0 and the package triton. Each module of kernels computes
small examples before its first use and compares them with the operators' definitions. Where Triton
is missing or fails, or results are wrong, a message says so, once, and PyTorch does the work.
``DUQUANT_KERNELS=0`` turns all kernels off.

With ``TRITON_INTERPRET=1`` Triton runs kernels on the CPU, slowly: tests of their numbers do that.
"""

import importlib.util
import logging
import os
from collections.abc import Callable

import torch

LEAST_CAPABILITY = (8, 0)
"""Triton's compiler has no int8 products for GPUs before that."""

_reasons: list[str] = []


def is_interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_here(is_right: Callable[[torch.device], bool]) -> bool:
    """Whether this machine runs a module's kernels; the caller keeps the answer.

    Args:
        is_right: computes small examples on a device and says whether they are as they should be.
    """
    if os.environ.get("DUQUANT_KERNELS", "1") == "0":
        return False
    if not is_interpreted():
        if not torch.cuda.is_available():
            return False
        capability = min(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())))
        if capability < LEAST_CAPABILITY:
            return _explain("a GPU has compute capability {}.{}, below 8.0".format(*capability))
    if importlib.util.find_spec("triton") is None:
        return _explain("the package triton is not installed")
    device = torch.device("cpu") if is_interpreted() else torch.device("cuda")
    try:
        with torch.no_grad():
            is_good = is_right(device)
    except Exception as error:  # a compiler has many, and none may end what runs without it
        first = next(iter(str(error).splitlines()), "")
        return _explain(f"Triton failed ({type(error).__name__}: {first[:200]})")
    return is_good or _explain(f"results of {is_right.__module__} are wrong on this GPU")


def _explain(reason: str) -> bool:
    if not _reasons:
        logging.getLogger(__name__).warning(
            "Triton kernels are off, PyTorch does their work more slowly: %s; "
            "DUQUANT_KERNELS=0 does without them and this message",
            reason,
        )
    _reasons.append(reason)
    return False
