"""Dynamic quantization: every token for itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duquant.formats.table import build_format
from duquant.nn.activation import ActivationQuantizer
from duquant.ops.affine import fake_quantize
from tests.outliers import outlier_activation, seeds


@given(seeds, st.integers(2, 8), st.booleans(), st.integers(0, 6))
def test_a_token_does_not_depend_on_its_neighbours(
    seed: int, bits: int, symmetric: bool, token: int
) -> None:
    quantizer = ActivationQuantizer(build_format("integer", bits=bits, symmetric=symmetric), 0.9)
    x = outlier_activation(7, 32, seed)
    changed = outlier_activation(7, 32, seed + 1)
    changed[token] = x[token]
    assert torch.equal(quantizer(x)[token], quantizer(changed)[token])
    assert torch.equal(quantizer(x)[token], quantizer(x[token]))


@pytest.mark.parametrize("symmetric", [False, True])
def test_ratio_clips_both_ends(symmetric: bool) -> None:
    x = outlier_activation(5, 32, seed=0)
    expected = fake_quantize(x, 4, symmetric=symmetric, clip_high=0.7, clip_low=0.7)
    assert torch.equal(
        ActivationQuantizer(build_format("integer", bits=4, symmetric=symmetric), 0.7)(x), expected
    )
    assert expected.abs().max() < 0.9 * x.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept_and_arithmetic_is_wide(dtype: torch.dtype) -> None:
    x = outlier_activation(5, 32, seed=0).to(dtype)
    y = ActivationQuantizer(build_format("integer", bits=4), 0.9)(x)
    wide = x.to(torch.promote_types(dtype, torch.float32))
    assert y.dtype == dtype
    assert torch.equal(y, fake_quantize(wide, 4, clip_high=0.9, clip_low=0.9).to(dtype))


def test_sixteen_bits_pass_the_input_through() -> None:
    x = outlier_activation(2, 8, seed=0)
    assert ActivationQuantizer(build_format("integer", bits=16), 0.5)(x) is x


def test_shape_is_kept_in_any_number_of_dimensions() -> None:
    x = outlier_activation(24, 16, seed=0)
    quantizer = ActivationQuantizer(build_format("integer", bits=4), 0.9)
    assert torch.equal(quantizer(x.view(2, 3, 4, 16)).view(24, 16), quantizer(x))
