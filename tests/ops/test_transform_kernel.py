"""The C kernel of a site's transform beside PyTorch's products; skipped where it is missing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from duquant.ops.dual_transform import DualTransform, apply_in_steps, apply_transform
from duquant.ops.kernels import rows, transform
from duquant.ops.quantized_tokens import decode_tokens
from duquant.ops.rotation import random_orthogonal
from duquant.ops.transformed_tokens import FUSED_ROWS, is_fused
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


@pytest.mark.parametrize("tokens", [1, 3, 8, 19, 150])
@pytest.mark.parametrize("has_mean", [False, True])
def test_quantizing_on_the_way_changes_no_bit(tokens: int, has_mean: bool) -> None:
    width = 4 * SIZE
    x, matrices = outlier_activation(tokens, width, 1), drawn(1, 4, 1, shared=False)
    mean = torch.linspace(-1, 1, width) if has_mean else None
    smoothed = x if mean is None else x - mean
    whole = transform.transformed_tokens(x, mean, *matrices, 4, 0.9, None, False)
    transformed = transform.transform_rows(smoothed, *matrices)
    assert torch.equal(whole, rows.quantize_tokens(transformed, 4, 0.9, None, False))


@pytest.mark.parametrize("has_mean", [False, True])
def test_half_precision_moves_few_integers_of_many_tokens(has_mean: bool) -> None:
    """Processors with AMX multiply parts of bfloat16; others give what float32 gives."""
    tokens, width = 500, 8 * SIZE
    x, matrices = outlier_activation(tokens, width, 2).bfloat16(), drawn(2, 8, 1, shared=True)
    mean = x.float().mean(dim=0) if has_mean else None
    wide = x.float() if mean is None else x.float() - mean
    arguments = (mean, *matrices, 4, 0.9, None, False)
    found, _ = decode_tokens(transform.transformed_tokens(x, *arguments))
    narrow = transform.transform_rows(wide, *matrices)
    expected, _ = decode_tokens(rows.quantize_tokens(narrow, 4, 0.9, None, False))
    apart = (found.int() - expected.int()).abs()
    assert apart.max() <= 1
    assert apart.float().mean() < 1e-4  # 1e-5 of many more integers


def test_a_damaged_permutation_is_refused() -> None:
    x, matrices = outlier_activation(5, 4 * SIZE, 0), drawn(0, 4, 1, shared=True)
    permutations = matrices.permutations.clone()
    permutations[0, 3] = 4 * SIZE
    with pytest.raises(ValueError, match="the model is damaged"):
        transform.transformed_tokens(x, None, matrices.rotations, permutations, 4, 1.0, None, True)


@pytest.mark.parametrize("operator", ["transformed_tokens", "transformed_values"])
def test_what_the_kernel_does_not_take_goes_step_by_step(operator: str) -> None:
    """By a kernel for each step, which is faster than the operator's definition."""
    x, rotations = outlier_activation(3, 64, 0), torch.zeros(1, 1, SIZE, SIZE)
    for taken in (x, x.bfloat16()):
        assert is_fused(operator, taken, rotations, torch.zeros(64))
        assert is_fused(operator, taken, None)
    for other in (x.half(), x.double(), x.to("meta")):
        assert not is_fused(operator, other, rotations)
    small, none = torch.zeros(1, 4, 16, 16), torch.zeros(0, 1, SIZE, SIZE)
    for matrices in (small, none, rotations.to("meta")):
        assert not is_fused(operator, x, matrices)
    assert not is_fused(operator, x, rotations, torch.zeros(64, device="meta"))


@pytest.mark.parametrize("absent", [0, 1])
def test_what_has_no_memory_is_not_left_out(absent: int) -> None:
    """A mean or rotations on the meta device: C takes no address for none."""
    x, (rotations, _) = outlier_activation(5, 64, 0), drawn(0, 2, 0, shared=True)
    parts = [torch.ones(64), rotations]
    parts[absent] = parts[absent].to("meta")
    none = torch.zeros(0, 64).long()
    with pytest.raises(AssertionError):
        transform.transformed_tokens(x, *parts, none, 4, 1.0, None, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_rows_of_half_precision_stay_with_the_tensor_cores_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("duquant.ops.transformed_tokens.is_present", lambda *_: True)
    rows = FUSED_ROWS
    with FakeTensorMode():  # knows of a GPU that is not there
        for x in (torch.empty(rows, 64, device="cuda"), torch.empty(2, rows, 64, device="cuda")):
            assert is_fused("transformed_tokens", x, None)
            is_few = x.numel() == rows * 64
            assert is_fused("transformed_tokens", x.to(dtype), None) == is_few
    assert is_fused("transformed_tokens", torch.empty(2 * rows, 64, dtype=torch.bfloat16), None)
