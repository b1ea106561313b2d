"""Whether a tensor is finite: no value at any place is missed, none is suspected."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duquant.ops.finite import is_finite, require_finite

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BAD = [float("nan"), -float("nan"), float("inf"), -float("inf")]


@given(
    st.sampled_from(DTYPES),
    st.integers(1, 300),
    st.sampled_from(BAD),
    st.floats(0, 1, exclude_max=True),
)
def test_one_bad_value_at_any_place_is_found(
    dtype: torch.dtype, size: int, value: float, place: float
) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    assert is_finite(x)
    x[int(place * size)] = value
    assert not is_finite(x)
    assert not is_finite(x.view(1, -1, 1).expand(2, -1, 3))
    with pytest.raises(ValueError, match=f"^1 of {size} values of x are not finite in float16: "):
        require_finite(x, "values of x", torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_a_dtype_are_finite(dtype: torch.dtype) -> None:
    ends = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, 0, -0.0], dtype=dtype)
    require_finite(ends, "ends", dtype)
    assert is_finite(torch.zeros(0, dtype=dtype))


def test_integers_are_finite() -> None:
    assert is_finite(torch.tensor([2**63 - 1, -(2**63)]))


@pytest.mark.parametrize(
    ("value", "narrow"), [(7e4, torch.float16), (-7e4, torch.float16), (3.4e38, torch.bfloat16)]
)
def test_what_a_narrower_dtype_cannot_hold_is_not_finite_in_it(
    value: float, narrow: torch.dtype
) -> None:
    x = torch.tensor([1.0, value])
    assert is_finite(x)
    assert not is_finite(x, narrow)


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (torch.float16, "--model.dtype float32 or bfloat16$"),
        (torch.bfloat16, "--model.dtype float32$"),
        (torch.float32, "check the model's weights"),
    ],
)
def test_the_remedy_is_one(dtype: torch.dtype, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        require_finite(torch.tensor([torch.nan]), "values", dtype)
