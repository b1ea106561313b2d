"""The Triton kernels of fake quantization in Triton's interpreter, where they are hard put.

``test_triton_kernels.py`` runs this file in a process of its own, with ``TRITON_INTERPRET=1``.
"""

import pytest
import torch
from torch import Tensor

from duquant.ops.fake_quantize import quantize_in_steps
from duquant.ops.quantized_tokens import quantize_tokens_in_steps
from duquant.ops.rows_gradient import gradient_in_steps
from duquant.ops.triton_kernels import rows
from tests.ops.test_not_finite import planted
from tests.outliers import outlier_activation

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities


@pytest.fixture(autouse=True)
def _kernels_that_are_right() -> None:
    assert rows.is_available()


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], atol: float = 0) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4 if atol else 0, atol=atol, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 3000), (3, 1024), (18, 130), (2, 5, 33), (40, 1)], ids=str)
@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (2, True), (14, False)])
def test_rows_longer_and_shorter_than_a_tile(
    shape: tuple[int, ...], bits: int, symmetric: bool
) -> None:
    x = outlier_activation(torch.Size(shape[:-1]).numel(), shape[-1], seed=1).view(shape)
    x[..., :1, :] = 0
    grad = x.flip(-1)
    clip = torch.linspace(0.5, 1, x[..., 0].numel()).view(*shape[:-1], 1)
    arguments = (x, clip, None, 1.0, 0.7, bits, symmetric, False)
    expected = quantize_in_steps(*arguments)
    assert_same(rows.fake_quantize_rows(*arguments), expected)
    found = rows.quantize_rows_gradient(x, grad, *expected[1:], bits, True)
    sums, places = found[:2], found[2:]
    right = gradient_in_steps(x, grad, *expected[1:], bits, True)
    assert_same(places, right[2:])
    # Float32 terms as large as the square of the largest entry, added in another order.
    assert_same(sums, right[:2], atol=shape[-1] * 2e-7 * float(x.square().max()) + 1e-6)


def test_half_precision() -> None:
    """Computed in float32. (The interpreter cuts bfloat16 off where a GPU rounds it.)"""
    x = outlier_activation(18, 1100, seed=1).to(torch.float16)
    grad, clip = x.flip(-1), torch.linspace(0.5, 1, 18).view(18, 1)
    arguments = (x, clip, None, 1.0, 0.7, 4, False, False)
    expected = quantize_in_steps(*arguments)
    assert_same(rows.fake_quantize_rows(*arguments), expected)
    found = rows.quantize_rows_gradient(x, grad, *expected[1:], 4, True)
    right = gradient_in_steps(x, grad, *expected[1:], 4, True)
    assert_same(found[2:], right[2:])
    assert_same(found[:2], right[:2], atol=1100 * 2e-7 * float(x.float().square().max()))
    short = x.to(torch.bfloat16)
    cut = rows.fake_quantize_rows(short, *arguments[1:])
    expected = quantize_in_steps(short, *arguments[1:])
    torch.testing.assert_close(cut[0], expected[0], rtol=2.0**-7, atol=0)
    assert_same(cut[1:], expected[1:])


def test_numbers_that_are_not_finite() -> None:
    for number, x in planted(12):
        bits, symmetric = (2, 4, 8)[number % 3], number % 2 == 0
        arguments = (x, None, None, 0.9, 0.8, bits, symmetric, False)
        expected = quantize_in_steps(*arguments)
        assert_same(rows.fake_quantize_rows(*arguments), expected)
        found = rows.quantize_rows_gradient(x, x.flip(0), *expected[1:], bits, True)
        right = gradient_in_steps(x, x.flip(0), *expected[1:], bits, True)
        assert_same(found[2:], right[2:])
        assert all(torch.equal(a.isnan(), b.isnan()) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tokens_of_every_float(dtype: torch.dtype) -> None:
    x = outlier_activation(5, 1100, seed=2).to(dtype)
    ends = torch.tensor([0.8, 0.65], dtype=torch.float32)
    for clip_ends in (None, ends):
        arguments = (x, 4, 0.9, clip_ends, False)
        assert torch.equal(rows.quantize_tokens(*arguments), quantize_tokens_in_steps(*arguments))
