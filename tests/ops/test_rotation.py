"""Greedy block rotation against a search written with plain loops over Python floats."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.ops.greedy_search import exchange_channels
from duquant.ops.rotation import (
    Scope,
    Selector,
    block_rotate,
    find_rotation,
    random_base,
    random_orthogonal,
    spreading_matrix,
)
from tests.outliers import outlier_activation, seeds

Matrix = list[list[float]]
SELECTORS: tuple[Selector, ...] = ("authors", "outlier", "hadamard", "random")
SCOPES: tuple[Scope, ...] = ("shared", "per_block")


def search(
    x: Tensor, seed: int, selector: Selector, scope: Scope, *, block_size: int = 8, steps: int = 6
) -> Tensor:
    return find_rotation(
        x,
        block_size=block_size,
        max_steps=steps,
        selector=selector,
        scope=scope,
        generator=torch.Generator().manual_seed(seed),
    )


def multiplied(a: Matrix, b: Matrix) -> Matrix:
    columns = list(zip(*b, strict=True))
    return [[sum(p * q for p, q in zip(row, c, strict=True)) for c in columns] for row in a]


def greedy_reference(rows: Matrix, base: Matrix, steps: int, *, follow_row: bool) -> Matrix:
    """Algorithm 1 on the rows of one search; ``follow_row`` exchanges as the authors' code does."""
    size = len(base)
    best = current = [[float(i == j) for j in range(size)] for i in range(size)]

    def peak() -> float:
        values = [value for row in rows for value in row]
        return max(values) - min(values) if follow_row else max(abs(value) for value in values)

    smallest_peak = peak()
    for _ in range(steps):
        positions = list(product(range(len(rows)), range(size)))
        row, column = max(positions, key=lambda at: abs(rows[at[0]][at[1]]))
        order = list(range(size))
        chosen = row % size if follow_row else column
        order[0], order[chosen] = order[chosen], order[0]
        step = [[base[i][j] for j in order] for i in order]
        rows, current = multiplied(rows, step), multiplied(current, step)
        if peak() < smallest_peak:
            smallest_peak, best = peak(), current
    return best


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("selector", ["authors", "outlier"])
@pytest.mark.parametrize("seed", range(3))
def test_search_is_the_plain_loops(seed: int, selector: Selector, scope: Scope) -> None:
    x, block_size, steps = outlier_activation(10, 24, seed), 8, 7
    bases = random_base(torch.Generator().manual_seed(seed))(3 if scope == "per_block" else 1, 8)
    found = search(x, seed, selector, scope, steps=steps)
    assert found.shape == bases.shape
    inputs = [x.reshape(-1, block_size)] if scope == "shared" else list(x.split(block_size, dim=1))
    for rotation, rows, base in zip(found, inputs, bases, strict=True):
        expected = greedy_reference(
            rows.tolist(), base.tolist(), steps, follow_row=selector == "authors"
        )
        # Seven float32 products of 8×8 orthogonal matrices against the same in float64.
        torch.testing.assert_close(rotation, torch.tensor(expected), rtol=0, atol=2e-6)


@given(
    seeds,
    st.sampled_from(SELECTORS),
    st.sampled_from(SCOPES),
    st.sampled_from([(2, 6), (8, 24), (16, 16), (32, 64), (128, 128)]),
)
def test_rotations_are_orthogonal(
    seed: int, selector: Selector, scope: Scope, sizes: tuple[int, int]
) -> None:
    block_size, width = sizes
    x = outlier_activation(9, width, seed)
    rotation = search(x, seed, selector, scope, block_size=block_size, steps=32)
    num_matrices = 1 if scope == "shared" else width // block_size
    assert rotation.shape == (num_matrices, block_size, block_size)
    assert rotation.dtype == torch.float32
    # Up to 32 float32 products of orthogonal matrices drift by about 1e-7 each.
    identity = torch.eye(block_size).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, identity, rtol=0, atol=1e-5)


@given(seeds, st.sampled_from(SCOPES), st.integers(1, 40))
def test_largest_entry_never_grows(seed: int, scope: Scope, steps: int) -> None:
    x = outlier_activation(12, 32, seed)
    rotated = block_rotate(x, search(x, seed, "outlier", scope, steps=steps))
    if scope == "shared":
        before, after = x.abs().max(), rotated.abs().max()
    else:
        before = x.abs().unflatten(1, (-1, 8)).amax(dim=(0, 2))
        after = rotated.abs().unflatten(1, (-1, 8)).amax(dim=(0, 2))
    # The search rotates step by step, here at once: float32 rounds differently, by 1e-6 of a row.
    assert (after <= before + 1e-5 * x.abs().max()).all()


@given(seeds, st.integers(1, 40))
def test_authors_range_never_grows(seed: int, steps: int) -> None:
    x = outlier_activation(12, 32, seed)
    rotated = block_rotate(x, search(x, seed, "authors", "shared", steps=steps))
    # Tolerance as above.
    assert rotated.max() - rotated.min() <= (x.max() - x.min()) * (1 + 1e-5)


@given(seeds, st.sampled_from(SCOPES))
def test_more_steps_never_end_higher(seed: int, scope: Scope) -> None:
    x = outlier_activation(12, 16, seed)
    peaks = [
        block_rotate(x, search(x, seed, "outlier", scope, block_size=16, steps=steps)).abs().max()
        for steps in (1, 4, 16, 64)
    ]
    # Tolerance as above.
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(peaks))


def test_search_flattens_a_massive_outlier() -> None:
    x = outlier_activation(32, 64, seed=0)
    rotated = block_rotate(x, search(x, 0, "outlier", "per_block", block_size=64, steps=64))
    assert rotated.abs().max() < 0.5 * x.abs().max()


@given(seeds, st.sampled_from(SELECTORS), st.sampled_from(SCOPES))
def test_rotating_input_and_weight_leaves_their_product(
    seed: int, selector: Selector, scope: Scope
) -> None:
    x, weight = outlier_activation(6, 24, seed), outlier_activation(5, 24, seed + 1)
    rotation = search(x, seed, selector, scope)
    # Rotations are orthogonal to 1e-5, products here are as large as |x| |W|.
    tolerance = 1e-5 * float(x.norm(dim=1).max() * weight.norm(dim=1).max())
    product = block_rotate(x, rotation) @ block_rotate(weight, rotation).T
    torch.testing.assert_close(product, x @ weight.T, rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_matrices", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_rotation_is_one_block_diagonal_matrix(num_matrices: int, dtype: torch.dtype) -> None:
    rotation = random_orthogonal(num_matrices, 4, torch.Generator().manual_seed(0)).to(dtype)
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    dense = torch.block_diag(*(rotation if num_matrices == 3 else rotation.expand(3, 4, 4)))
    rotated = block_rotate(x, rotation)
    assert rotated.dtype == dtype
    torch.testing.assert_close(rotated, x @ dense)


def test_random_rotations_favour_no_direction() -> None:
    """Uniform over the orthogonal group: every entry has mean 0 and variance ``1/size``.

    A QR decomposition alone fixes the sign of the first column's first entry.
    """
    count, size = 4000, 4
    drawn = random_orthogonal(count, size, torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(drawn @ drawn.mT, torch.eye(size).double().expand_as(drawn @ drawn))
    deviation = (1 / size / count) ** 0.5
    assert drawn.mean(dim=0).abs().max() < 5 * deviation
    # The square of an entry has mean 1/n and variance 2 (n - 1) / (n² (n + 2)).
    spread = (2 * (size - 1) / (size**2 * (size + 2)) / count) ** 0.5
    assert (drawn.square().mean(dim=0) - 1 / size).abs().max() < 5 * spread


@pytest.mark.parametrize("size", [1, 2, 3, 16, 128])
def test_spreading_matrix_is_orthogonal_with_a_constant_first_row(size: int) -> None:
    matrix = spreading_matrix(size)
    torch.testing.assert_close(matrix[0], torch.full((size,), size**-0.5))
    # Rounded once from float64: sums of 128 products keep seven digits.
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), rtol=0, atol=1e-6)


def test_random_base_stirs_all_channels_but_the_first() -> None:
    base = random_base(torch.Generator().manual_seed(0))(2, 16)
    spread = spreading_matrix(16)
    # float32 products of a 16×16 matrix
    stirring = spread.T @ base
    torch.testing.assert_close(stirring[:, 0], torch.eye(16)[0].expand(2, 16), rtol=0, atol=1e-6)
    torch.testing.assert_close(stirring[:, :, 0], torch.eye(16)[0].expand(2, 16), rtol=0, atol=1e-6)
    assert not torch.allclose(stirring[0], stirring[1])


@given(seeds, st.integers(2, 9))
def test_exchange_swaps_rows_and_columns(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(3, size, size, generator=generator)
    channel = torch.randint(size, (3,), generator=generator)
    exchanged = exchange_channels(base, channel)
    for matrix, expected, c in zip(exchanged, base, channel.tolist(), strict=True):
        rows = expected.tolist()
        rows[0], rows[c] = rows[c], rows[0]
        for row in rows:
            row[0], row[c] = row[c], row[0]
        assert matrix.tolist() == rows


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("selector", SELECTORS)
def test_a_seed_decides_and_no_global_generator_is_touched(
    selector: Selector, scope: Scope
) -> None:
    x = outlier_activation(10, 24, seed=0)
    state = torch.get_rng_state()
    first, second = search(x, 5, selector, scope), search(x, 5, selector, scope)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    if selector != "hadamard":
        assert not torch.equal(first, search(x, 6, selector, scope))


def test_random_rotations_differ_from_block_to_block() -> None:
    rotation = search(outlier_activation(4, 24, 0), 0, "random", "per_block")
    assert not torch.allclose(rotation[0], rotation[1])


def test_no_search_without_a_selector() -> None:
    with pytest.raises(ValueError, match="'none' has no rotation"):
        search(torch.zeros(2, 8), 0, "none", "shared")


@pytest.mark.parametrize("scope", SCOPES)
def test_nothing_to_flatten_leaves_the_input_alone(scope: Scope) -> None:
    """No step makes a flat tensor flatter, so the identity stays the best product."""
    rotation = search(torch.zeros(4, 16), 0, "outlier", scope)
    assert torch.equal(rotation, torch.eye(8).expand_as(rotation))


@pytest.mark.parametrize("selector", ["authors", "outlier"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_counted(selector: Selector, value: float) -> None:
    x = outlier_activation(10, 24, 0)
    x[3, 4:6] = value
    with pytest.raises(ValueError, match=r"2 of 240 calibration values .*--model.dtype"):
        search(x, 0, selector, "shared")
