"""The C kernel of a site's transform beside PyTorch's products; skipped where it is missing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duquant.ops.dual_transform import DualTransform, apply_in_steps, apply_transform
from duquant.ops.kernels import transform
from duquant.ops.rotation import random_orthogonal
from tests.outliers import outlier_activation, seeds

SIZE = 32
pytestmark = pytest.mark.skipif(
    not transform.panel_width(),
    reason="needs an x86 processor with AVX2 and a C compiler",
)


def drawn(seed: int, blocks: int, times: int, *, shared: bool) -> DualTransform:
    generator = torch.Generator().manual_seed(seed)
    matrices = 1 if shared else blocks
    rotations = random_orthogonal((times + 1) * matrices, SIZE, generator)
    orders = [torch.randperm(blocks * SIZE, generator=generator) for _ in range(times)]
    permutations = torch.stack(orders) if orders else torch.zeros(0, blocks * SIZE).long()
    return DualTransform(rotations.view(times + 1, matrices, SIZE, SIZE), permutations)


@given(seeds, st.integers(1, 40), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_it_is_the_same_transform(
    seed: int, tokens: int, blocks: int, times: int, shared: bool
) -> None:
    x = outlier_activation(tokens, blocks * SIZE, seed)
    transformation = drawn(seed, blocks, times, shared=shared)
    # Sums of 32 float32 products, up to four times in a row, possibly in another order.
    tolerance = 4 * SIZE * 2.0**-24 * float(x.norm(dim=1).max())
    torch.testing.assert_close(
        apply_transform(x, transformation),
        apply_in_steps(x, transformation),
        rtol=0,
        atol=tolerance,
    )


def test_a_token_is_alone_in_every_company() -> None:
    """Neither the other tokens of a batch nor threads change a bit."""
    x, transformation = outlier_activation(61, 4 * SIZE, 0), drawn(0, 4, 1, shared=False)
    before, whole = torch.get_num_threads(), apply_transform(x, transformation)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(apply_transform(x, transformation), whole)
    finally:
        torch.set_num_threads(before)
    for count in (1, 2, 5, 8, 13):
        chunks = [apply_transform(chunk, transformation) for chunk in x.split(count)]
        assert torch.equal(torch.cat(chunks), whole)


def test_dimensions_and_strides_do_not_matter() -> None:
    transformation = drawn(1, 2, 1, shared=True)
    x = outlier_activation(30, 2 * SIZE, 1).view(5, 6, -1).transpose(0, 1)
    expected = apply_transform(x.reshape(30, -1), transformation).view_as(x)
    assert torch.equal(apply_transform(x, transformation), expected)
