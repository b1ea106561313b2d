"""Half precision is widened on processors only, and searches get the float32 they ask for."""

import pytest
import torch

from duquant.evaluation.known_perplexity import describe_machine
from duquant.ops.precision import exact_products, widen_on_cpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32_on_the_cpu(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4).to(dtype)
    assert torch.equal(widen_on_cpu(x), x.float())
    assert widen_on_cpu(x).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_numbers_stay_the_same_tensor(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, dtype=dtype)
    assert widen_on_cpu(x) is x


def test_other_devices_keep_the_models_dtype() -> None:
    x = torch.empty(3, 4, dtype=torch.bfloat16, device="meta")
    assert widen_on_cpu(x) is x


def _allow(setting: str, *, by_backend: bool) -> None:
    if by_backend:
        torch.backends.cuda.matmul.fp32_precision = setting
    else:
        torch.set_float32_matmul_precision(setting)


@pytest.mark.parametrize(
    ("setting", "by_backend"), [("medium", False), ("high", False), ("tf32", True)]
)
def test_float32_is_float32_meanwhile(setting: str, by_backend: bool) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        _allow(setting, by_backend=by_backend)
        allowed = matmul.fp32_precision
        with exact_products():
            assert matmul.fp32_precision == "ieee"
        with pytest.raises(RuntimeError, match="stop"), exact_products():
            raise RuntimeError("stop")
        assert matmul.fp32_precision == allowed != "ieee"
        if not by_backend:
            assert torch.get_float32_matmul_precision() == setting
    finally:
        matmul.fp32_precision = before
        if not by_backend:
            torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("backend", ["cuda", "mkldnn"])
def test_settings_of_one_backend_are_told(backend: str) -> None:
    matmul = getattr(torch.backends, backend).matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        assert "tf32" in describe_machine(torch.device("cpu"))["matmul_precision"]
    finally:
        matmul.fp32_precision = before
