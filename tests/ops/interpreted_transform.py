"""The Triton kernel of a site's transform in Triton's interpreter.

``test_triton_kernels.py`` runs this file in a process of its own, with ``TRITON_INTERPRET=1``.
"""

import pytest
import torch
from torch import Tensor

from duquant.ops.dual_transform import DualTransform, transform_rows_in_steps
from duquant.ops.rotation import random_orthogonal
from duquant.ops.triton_kernels import transform
from tests.outliers import outlier_activation


@pytest.fixture(autouse=True)
def _kernels_that_are_right() -> None:
    assert transform.is_available()


def drawn(blocks: int, size: int, times: int, *, shared: bool) -> DualTransform:
    generator = torch.Generator().manual_seed(size)
    matrices = 1 if shared else blocks
    rotations = random_orthogonal((times + 1) * matrices, size, generator)
    orders = [torch.randperm(blocks * size, generator=generator) for _ in range(times)]
    permutations = torch.stack(orders) if times else torch.zeros(0, blocks * size).long()
    return DualTransform(rotations.view(times + 1, matrices, size, size), permutations)


def assert_near(found: Tensor, expected: Tensor, error: float) -> None:
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=error * largest)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("tokens", "blocks", "size", "times"),
    [(1, 2, 64, 1), (19, 3, 20, 2), (70, 2, 32, 1), (3, 1, 150, 1), (5, 2, 6, 0)],
)
def test_it_is_the_same_transform(
    tokens: int, blocks: int, size: int, times: int, shared: bool
) -> None:
    x, made = (
        outlier_activation(tokens, blocks * size, 1),
        drawn(blocks, size, times, shared=shared),
    )
    # Sums of up to 150 float32 products, up to three times in a row, in another order.
    found = transform.transform_rows(x, *made)
    assert_near(found, transform_rows_in_steps(x, *made), 3 * size * 2.0**-24)
    numbers = DualTransform(made.rotations, made.permutations.to(torch.int32))
    assert torch.equal(transform.transform_rows(x, *numbers), found)


@pytest.mark.parametrize(
    ("dtype", "error"),
    # of 11 and of 8 bits, one of which the interpreter cuts off; three roundings
    [(torch.float16, 3 * 2.0**-11), (torch.bfloat16, 6 * 2.0**-8)],
)
def test_half_precision_is_rounded_once_per_rotation(dtype: torch.dtype, error: float) -> None:
    x, made = outlier_activation(17, 96, 2).to(dtype), drawn(3, 32, 1, shared=False)
    assert_near(transform.transform_rows(x, *made), transform_rows_in_steps(x, *made), error)


def test_a_token_is_alone_in_every_company() -> None:
    """A token that is not finite spoils no other, and tiles of another size change no bit."""
    x, made = outlier_activation(40, 96, 3), drawn(3, 32, 1, shared=False)
    whole = transform.transform_rows(x, *made)
    assert torch.equal(transform.transform_rows(x[:7], *made), whole[:7])
    x[5, 3] = torch.nan
    spoilt = transform.transform_rows(x, *made)
    assert spoilt[5].isnan().any()
    spoilt[5] = whole[5]
    assert torch.equal(spoilt, whole)


def test_a_channel_that_does_not_exist_is_read_from_nowhere() -> None:
    x, made = outlier_activation(3, 96, 4), drawn(3, 32, 1, shared=True)
    for wrong in (-1, 96, 2**31 - 1):
        order = made.permutations.clone()
        order[0, 40] = wrong
        found = transform.transform_rows(x, made.rotations, order)
        assert found[:, 32:64].isnan().all()
        assert found[:, :32].isfinite().all()
        assert found[:, 64:].isfinite().all()
