"""The dual transformation as one dense orthogonal matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.ops.dual_transform import (
    DualTransform,
    apply_in_steps,
    apply_transform,
    find_transform,
    inverse_transposed,
)
from duquant.ops.permutation import zigzag_permutation
from duquant.ops.rotation import Scope, Selector, find_rotation
from tests.outliers import outlier_activation, random_weight, seeds

BLOCK_SIZE = 8


def searched(x: Tensor, seed: int, selector: Selector, scope: Scope, times: int) -> DualTransform:
    generator = torch.Generator().manual_seed(seed)
    return find_transform(
        x,
        lambda tensor: find_rotation(
            tensor,
            block_size=BLOCK_SIZE,
            max_steps=4,
            selector=selector,
            scope=scope,
            generator=generator,
        ),
        block_size=BLOCK_SIZE,
        permutation_times=times,
    )


def dense(transform: DualTransform, width: int) -> Tensor:
    """``R₁ P R₂ …`` written out: a permutation picks the columns of an identity."""
    matrix = torch.eye(width)
    for index, rotation in enumerate(transform.rotations):
        blocks = rotation.expand(width // rotation.shape[-1], -1, -1)
        matrix = matrix @ torch.block_diag(*blocks)
        if index < len(transform.permutations):
            matrix = matrix @ torch.eye(width)[:, transform.permutations[index]]
    return matrix


transforms = st.tuples(
    seeds,
    st.sampled_from(["authors", "outlier", "hadamard", "random"]),
    st.sampled_from(["shared", "per_block"]),
    st.integers(0, 3),
)


@given(transforms)
def test_transforming_input_and_weight_leaves_their_product(
    drawn: tuple[int, Selector, Scope, int],
) -> None:
    seed, *_ = drawn
    x, weight = outlier_activation(11, 24, seed), random_weight(5, 24, seed)
    transform = searched(x, *drawn)
    y = apply_transform(x, transform) @ apply_transform(weight, transform).T
    # Up to four rotations, each orthogonal to 1e-6, on products as large as |x| |W|.
    tolerance = 1e-5 * float(x.norm(dim=1).max() * weight.norm(dim=1).max())
    torch.testing.assert_close(y, x @ weight.T, rtol=0, atol=tolerance)


@given(transforms)
def test_transform_is_its_dense_matrix(drawn: tuple[int, Selector, Scope, int]) -> None:
    seed, _, _, times = drawn
    x = outlier_activation(6, 24, seed)
    transform = searched(x, *drawn)
    assert transform.rotations.shape[0] == times + 1
    assert transform.permutations.shape == (times, 24)
    assert transform.permutations.dtype == torch.int64
    # The same float32 products, associated differently, on entries up to 300.
    torch.testing.assert_close(
        apply_transform(x, transform), x @ dense(transform, 24), rtol=1e-4, atol=1e-3
    )


@given(seeds, st.integers(1, 3))
def test_each_permutation_is_the_zigzag_of_what_reaches_it(seed: int, times: int) -> None:
    x = outlier_activation(9, 24, seed)
    transform = searched(x, seed, "outlier", "per_block", times)
    for index in range(times):
        prefix = DualTransform(transform.rotations[: index + 1], transform.permutations[:index])
        peaks = apply_transform(x, prefix).abs().amax(dim=0)
        assert torch.equal(transform.permutations[index], zigzag_permutation(peaks, BLOCK_SIZE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_of_the_input_is_kept(dtype: torch.dtype) -> None:
    x = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    transform = searched(x, 0, "random", "shared", 1)
    y = apply_transform(x.to(dtype), transform)
    assert y.dtype == dtype
    # bfloat16 has eight bits of mantissa, and three roundings happen on the way.
    torch.testing.assert_close(y.float(), apply_transform(x, transform), rtol=0.03, atol=0.03)


def learning(size: int, times: int, *, shared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Five float64 tokens of three blocks, rotations that are not orthogonal, permutations."""
    generator = torch.Generator().manual_seed(times)
    matrices, width = 1 if shared else 3, 3 * size
    x = torch.randn(5, width, generator=generator).double()
    drawn = torch.randn(times + 1, matrices, size, size, generator=generator).double()
    orders = [torch.randperm(width, generator=generator) for _ in range(times)]
    return x, drawn, torch.stack(orders) if times else torch.zeros(0, width).long()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_gradients_are_finite_differences(times: int, shared: bool) -> None:
    """Those of the input and of every rotation, and their own gradients."""
    x, rotations, permutations = learning(2, times, shared=shared)
    leaves = x.requires_grad_(), rotations.requires_grad_()

    def apply(x: Tensor, rotations: Tensor) -> Tensor:
        return apply_transform(x, DualTransform(rotations, permutations))

    assert torch.autograd.gradcheck(apply, leaves)
    assert torch.autograd.gradgradcheck(apply, leaves)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.parametrize("learns", [(0,), (1,), (0, 1)], ids=["x", "rotations", "both"])
def test_gradients_of_float32_are_autograd_of_its_steps(
    learns: tuple[int, ...], times: int, shared: bool
) -> None:
    """With kernels where the machine has them: blocks of 64 channels are theirs."""
    *tensors, permutations = learning(64, times, shared=shared)
    upstream = torch.randn(5, 192, generator=torch.Generator().manual_seed(9))
    found: list[tuple[Tensor, ...]] = []
    for apply in (apply_transform, apply_in_steps):
        x, rotations = (tensor.float() for tensor in tensors)
        leaves = [(x, rotations)[index].requires_grad_() for index in learns]
        y = apply(x, DualTransform(rotations / 8, permutations))  # as long as orthogonal ones
        found.append(torch.autograd.grad(y, leaves, upstream))
    for one, other in zip(*found, strict=True):
        # Sums of 64 products of normal numbers, up to three times in a row, in another order.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_a_block_without_an_inverse_gives_what_is_not_finite() -> None:
    rotations = torch.stack([torch.eye(4), torch.ones(4, 4)]).unsqueeze(0)
    transform = DualTransform(rotations, torch.empty(0, 8, dtype=torch.int64))
    inverse = inverse_transposed(transform).rotations
    assert torch.equal(inverse[0, 0], torch.eye(4))
    assert not inverse[0, 1].isfinite().any()
