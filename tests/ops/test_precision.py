"""Half precision is widened on processors only, and searches get the float32 they ask for."""

import pytest
import torch

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


def test_float32_is_float32_meanwhile() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        with pytest.raises(RuntimeError), exact_products():
            raise RuntimeError
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
