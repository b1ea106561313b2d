"""Hadamard matrices and what they do along a head dimension."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duquant.ops.hadamard import hadamard_matrix, largest_power_of_two_divisor


@pytest.mark.parametrize("size", [1, 2, 4, 8, 32, 128])
def test_matrix_is_orthogonal_symmetric_and_flat(size: int) -> None:
    matrix = hadamard_matrix(size, dtype=torch.float64)
    # float64: the sums of up to 128 products round in the last digits.
    torch.testing.assert_close(
        matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5))


def test_entries_follow_sylvesters_rule() -> None:
    matrix = hadamard_matrix(16) * 4
    for i in range(16):
        for j in range(16):
            assert matrix[i, j] == (-1) ** (i & j).bit_count()


@pytest.mark.parametrize("size", [0, -4, 3, 12, 96])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"power of two, not {size}"):
        hadamard_matrix(size)


@given(st.integers(1, 4096), st.integers(1, 512))
def test_divisor_is_the_largest_power_of_two_that_fits(size: int, limit: int) -> None:
    powers = [2**k for k in range(13) if size % 2**k == 0 and 2**k <= limit]
    assert largest_power_of_two_divisor(size, limit) == max(powers)
