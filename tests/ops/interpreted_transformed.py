"""The Triton kernels that transform and quantize at once in Triton's interpreter, and launches.

``test_triton_kernels.py`` runs this file in a process of its own, with ``TRITON_INTERPRET=1``.
"""

import pytest
import torch
from torch import Tensor

from duquant.ops.affine import fake_quantize
from duquant.ops.dual_transform import transform_rows_in_steps
from duquant.ops.quantized_tokens import quantize_tokens_in_steps
from duquant.ops.transformed_tokens import (
    transformed_tokens_in_steps,
    transformed_values_in_steps,
)
from duquant.ops.triton_kernels import int4, transformed
from tests.ops.interpreted_int4 import arguments
from tests.ops.interpreted_transform import drawn
from tests.ops.kernel_cases import rotations_of_eighths
from tests.ops.launches import LAUNCHES, noted_launches
from tests.outliers import outlier_activation

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities
FEW = transformed.FEW_TOKENS


@pytest.fixture(autouse=True)
def _kernels_that_are_right() -> None:
    assert transformed.is_available()
    assert int4.is_available()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are launched."""
    return noted_launches(monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, FEW, FEW + 1, 70])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_site_by_exact_products(tokens: int, times: int, dtype: torch.dtype) -> None:
    x = outlier_activation(tokens, 192, 1).mul(4).round().clamp(-100, 100).to(dtype)
    order = [torch.randperm(192, generator=torch.Generator().manual_seed(n)) for n in range(times)]
    orders = torch.stack(order) if times else torch.zeros(0, 192).long()
    mean, ends = torch.arange(192) / 4.0 - 5, torch.tensor([0.8, 0.65])
    for given, clip, symmetric in ((None, None, True), (mean, ends, False)):
        grid = 4, 0.9, clip, symmetric
        rotations = rotations_of_eighths(times + 1, 1 if symmetric else 3)
        found = transformed.transformed_tokens(x, given, rotations, orders, *grid)
        expected = transformed_tokens_in_steps(x, given, rotations, orders, *grid)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("times", [0, 1])
def test_integers_of_a_token_are_the_same_among_few_and_many(times: int) -> None:
    x, made = outlier_activation(40, 96, 3), drawn(3, 32, times, shared=False)
    grid = 8, 1.0, None, False
    whole = transformed.transformed_tokens(x, None, *made, *grid)
    for count in (1, 3, FEW, FEW + 1, 17):
        part = transformed.transformed_tokens(x[:count], None, *made, *grid)
        assert torch.equal(part, whole[:count])
    near = quantize_tokens_in_steps(transform_rows_in_steps(x, *made), *grid)
    distance = (whole[:, :96].int() - near[:, :96].int()).abs()
    assert int(distance.max()) <= 1  # sums in another order
    assert float(distance.float().mean()) < 1e-3


def test_what_is_not_finite_stays_in_its_token() -> None:
    x, made = outlier_activation(3, 96, 3), drawn(3, 32, 1, shared=True)
    grid = 4, 1.0, None, False
    clean = transformed.transformed_tokens(x, None, *made, *grid)
    x[1, 5] = torch.nan
    spoilt = transformed.transformed_tokens(x, None, *made, *grid)
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])
    assert _scales(spoilt)[1].isnan()
    order = made.permutations.clone()
    order[0, 40] = 96
    lost = transformed.transformed_tokens(x, None, made.rotations, order, *grid)
    assert _scales(lost).isnan().all()


def _scales(tokens: Tensor) -> Tensor:
    return tokens[:, -6:-2].contiguous().view(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("width", "size"), [(32, 32), (96, 32), (128, 64), (256, 128), (80, 0)])
def test_heads(width: int, size: int, dtype: torch.dtype) -> None:
    x = outlier_activation(19, width, 5).mul(4).round().clamp(-60, 60).to(dtype)
    signs = torch.eye(size).roll(1, 0) * torch.where(torch.arange(size) % 3 > 0, 1.0, -1.0)
    for bits, symmetric in ((4, False), (3, True)):
        given = signs if size else None
        found = transformed.transformed_values(x, given, bits, 0.9, symmetric)
        expected = transformed_values_in_steps(x, given, bits, 0.9, symmetric)
        # The interpreter cuts bfloat16 off where a GPU rounds it.
        error = 2.0**-7 if dtype == torch.bfloat16 else 0
        torch.testing.assert_close(found, expected, rtol=error, atol=0)


def test_an_infinity_stays_in_its_block() -> None:
    """Zeros off the diagonal would make NaN of it in all of the row."""
    x = outlier_activation(2, 96, 6)
    x[0, 3] = torch.inf
    rotation = drawn(1, 32, 0, shared=True).rotations[0, 0]
    found = transformed.transformed_values(x, rotation, 4, 1.0, False)
    expected = transform_rows_in_steps(x, rotation.view(1, 1, 32, 32), torch.zeros(0, 96).long())
    expected = fake_quantize(expected, 4)
    assert torch.equal(found.isnan(), expected.isnan())
    assert found[1].isfinite().all()


def test_how_often_they_are_launched(launches: list[str]) -> None:
    """What is counted for a decoded token: ``tests/ops/launches.py``."""
    once = drawn(3, 32, 1, shared=True)
    x, grid = outlier_activation(FEW + 1, 96, 3), (4, 1.0, None, False)
    transformed.transformed_tokens(x[:FEW], x[0], *once, *grid)
    assert _taken(launches) == ["rotate_blocks", "rotate_and_encode"]
    transformed.transformed_tokens(x, x[0], *once, *grid)
    assert _taken(launches) == ["rotate_blocks", "rotate_blocks", "encode"]
    transformed.transformed_tokens(x[:1], x[0], *drawn(3, 32, 0, shared=True), *grid)
    assert _taken(launches) == ["rotate_blocks", "encode"]
    for times in (0, 1, 2):
        made = drawn(3, 32, times, shared=True)
        transformed.transformed_tokens(x[:1], x[0], *made, *grid)
        shapes = x[:1].shape, x[0].shape, made.rotations.shape
        counted = LAUNCHES["duquant::transformed_tokens"](shapes)
        assert len(_taken(launches)) == counted
    transformed.transformed_values(x, once.rotations[0, 0], 4, 1.0, False)
    assert _taken(launches) == ["quantize_values"]
    _, tokens, packed, *rows, bias = arguments(1, 66, 19)
    int4.packed_linear(tokens, packed, *rows, bias, 15, torch.float32)
    assert _taken(launches) == ["few_tokens"]


def _taken(names: list[str]) -> list[str]:
    taken = names.copy()
    names.clear()
    return taken
