"""Which precision transforms are computed in.

Rotations are products with orthogonal matrices, in front of a rounding to 16 levels. On
accelerators they run in the model's dtype, whose products are accumulated in float32; kernels that
quantize as well (:mod:`duquant.ops.transformed_tokens`) multiply float32. Processors multiply half
precision more slowly than float32, many without hardware for it, so there they run in float32.

A search multiplies hundreds of rotations and bounds what rounding does to the result. There float32
has to be float32, also where a program allows shorter products (TF32) elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """``x`` in float32 or wider: scales are chosen and entries are rounded in that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def widen_on_cpu(x: Tensor) -> Tensor:
    """``x`` as float32 if it is half precision on the CPU; else ``x`` itself."""
    return widen(x) if x.device.type == "cpu" else x


def product_settings() -> list[str]:
    """What programs allow for products of float32, on GPUs and on processors.

    ``torch.get_float32_matmul_precision`` refuses to say where it was set for one of them.
    """
    return [matmul.fp32_precision for matmul in _matmuls()]


@contextmanager
def exact_products() -> Iterator[None]:
    """Let matrix products of float32 be computed in float32 meanwhile."""
    settings = product_settings()
    try:
        for matmul in _matmuls():
            matmul.fp32_precision = "ieee"
        yield
    finally:
        for matmul, setting in zip(_matmuls(), settings, strict=True):
            matmul.fp32_precision = setting


def _matmuls() -> list[Any]:
    backends: list[Any] = [torch.backends.cuda, torch.backends.mkldnn]
    return [backend.matmul for backend in backends]
