"""The packed linear beside ``F.linear`` with the dequantized weight, in both of its ways."""

import copy
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from duquant.formats.integer import Integer
from duquant.formats.number_format import split_rows
from duquant.nn.activation import ActivationQuantizer
from duquant.nn.execution import Execution
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.site import SiteTransform
from duquant.ops.affine import AffineGrid, affine_grid, dequantize, quantize
from duquant.ops.integer_product import columns_at_once, engine
from duquant.ops.packing import packed_width
from duquant.ops.quantized_tokens import encode_tokens
from duquant.rounding.nearest import Nearest
from tests.forked_process import run_forked
from tests.outliers import outlier_activation, random_weight

ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
INTEGER = Execution("integer")
integers_needed = pytest.mark.skipif(
    engine(torch.device("cpu")) is None, reason="this processor has no int8 engine"
)


def packed_linear(
    bits: int = 4,
    activation_bits: int = 4,
    *,
    shape: tuple[int, int] = (7, 24),
    group_size: int | None = None,
    symmetric: bool = False,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
    weight: Tensor | None = None,
) -> PackedLinear:
    form = Integer(bits, symmetric, group_size)
    codes, grid, *_ = Nearest()(random_weight(*shape, seed=1) if weight is None else weight, form)
    return PackedLinear(
        form.store(codes, grid),
        torch.linspace(-2, 2, shape[0]).to(dtype) if bias else None,
        form,
        activations=Integer(activation_bits),
        in_features=shape[1],
        dtype=dtype,
    )


def quantized_input(linear: PackedLinear, x: Tensor, *, symmetric: bool = False) -> Tensor:
    """Encoded integers, as a site emits them."""
    codes, (scale, zero) = input_quantizer(linear, symmetric=symmetric).codes(x)
    return encode_tokens(codes, AffineGrid(scale, zero))


def input_quantizer(linear: PackedLinear, *, symmetric: bool) -> ActivationQuantizer:
    return ActivationQuantizer(Integer(linear.activations.bits, symmetric))


def assert_twins(linear: PackedLinear, x: Tensor, *, symmetric: bool = False) -> None:
    """Both ways agree within the bound of the module's docstring.

    A bias is one more term of the sum, and the integer result is rounded to its dtype once.
    """
    dtype = linear.output_like.dtype
    floats = input_quantizer(linear, symmetric=symmetric)(x)
    linear.execution = Execution("reference")
    reference = linear(floats.to(dtype))
    linear.restore()
    linear.execution = INTEGER
    integer = linear(quantized_input(linear, x, symmetric=symmetric))
    assert integer.dtype == reference.dtype == dtype
    assert integer.shape == reference.shape == (*x.shape[:-1], linear.out_features)
    terms = floats.double().abs() @ linear.dequantized().double().abs().T
    if linear.bias is not None:
        terms = terms + linear.bias.double().abs()
    bound = (linear.in_features + 8) * ROUNDOFF[dtype] * terms
    assert (integer.double() - reference.double()).abs().le(bound).all()


# The reference


@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 12, 15])
def test_reference_is_a_linear_with_the_dequantized_weight(bits: int, dtype: torch.dtype) -> None:
    linear = packed_linear(bits, group_size=8, bias=True, dtype=dtype)
    linear.execution = Execution("reference")
    x = outlier_activation(5, 24, seed=0).to(dtype)
    assert linear.bias is not None
    expected = F.linear(x, linear.dequantized().to(dtype), linear.bias)
    for memory in ("fast", "packed"):
        linear.execution = Execution("reference", memory)  # type: ignore[arg-type]
        for _ in range(2):
            assert torch.equal(linear(x), expected)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [None, 8])
def test_dequantized_weight_is_what_was_quantized(group_size: int | None, symmetric: bool) -> None:
    weight = random_weight(7, 24, seed=1)
    rows = split_rows(weight, group_size)
    grid = affine_grid(rows, 4, symmetric=symmetric)
    expected = dequantize(quantize(rows, grid, 4), grid).view(7, 24)
    linear = packed_linear(group_size=group_size, symmetric=symmetric)
    assert torch.equal(linear.dequantized(), expected)
    assert linear.group_size == (group_size or 24)


def test_reference_follows_the_dtype_of_its_input() -> None:
    linear = packed_linear()
    linear.execution = Execution("reference")
    x = outlier_activation(3, 24, seed=0)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        expected = F.linear(x.to(dtype), linear.dequantized().to(dtype))
        assert torch.equal(linear(x.to(dtype)), expected)


# Integers


@integers_needed
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("activation_bits", range(2, 9))
def test_every_pair_of_widths_agrees(bits: int, activation_bits: int) -> None:
    x = outlier_activation(5, 24, seed=bits)
    assert_twins(packed_linear(bits, activation_bits), x)
    assert_twins(packed_linear(bits, activation_bits, group_size=8, bias=True), x)


@integers_needed
@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_every_kind_of_linear_agrees(
    bias: bool, group_size: int | None, symmetric: bool, dtype: torch.dtype
) -> None:
    linear = packed_linear(group_size=group_size, symmetric=symmetric, bias=bias, dtype=dtype)
    assert_twins(linear, outlier_activation(9, 24, seed=0), symmetric=symmetric)


@integers_needed
@pytest.mark.parametrize("leading", [(1,), (1, 1), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (33, 1), (16, 515)])
def test_every_shape_agrees(shape: tuple[int, int], leading: tuple[int, ...]) -> None:
    x = outlier_activation(torch.Size(leading).numel(), shape[1], seed=0).view(*leading, shape[1])
    assert_twins(packed_linear(8, 8, shape=shape), x)


@integers_needed
def test_wide_inputs_are_multiplied_in_panels() -> None:
    """Eight bits times eight: 514 columns are all that float32 counts."""
    linear = packed_linear(8, 8, shape=(5, 1300), bias=True)
    assert_twins(linear, outlier_activation(3, 1300, seed=0))
    widths = [panel.columns.stop - panel.columns.start for panel in linear.panels or []]
    assert widths == [columns_at_once(8, 8), columns_at_once(8, 8), 1300 - 2 * 514]


@integers_needed
@pytest.mark.parametrize("bits", [4, 8])
def test_numbers_far_from_zero_agree(bits: int) -> None:
    """Rows without a sign change have zero points far outside of their integers."""
    weight = 1 + 1e-3 * random_weight(7, 2048, seed=0)
    linear = packed_linear(bits, bits, shape=(7, 2048), weight=weight)
    assert int(linear.zero.abs().min()) > 1000
    x = torch.zeros(3, 2048)
    x[:, 0] = torch.tensor([-3.0, 5.0, 0.0])
    assert_twins(linear, x)
    assert_twins(linear, 1 + 1e-3 * outlier_activation(3, 2048, seed=1))


@integers_needed
def test_an_input_of_zeros_gives_the_bias() -> None:
    linear = packed_linear(bias=True)
    linear.execution = INTEGER
    assert linear.bias is not None
    output = linear(quantized_input(linear, torch.zeros(2, 24)))
    assert torch.equal(output, linear.bias.expand(2, 7))


@integers_needed
def test_its_own_site_feeds_it_integers() -> None:
    linear = packed_linear()
    linear.site = SiteTransform(24, ActivationQuantizer(Integer(4), 1.0))
    linear.execution = INTEGER
    x = outlier_activation(5, 24, seed=0)
    reference = linear(x)
    linear.site.emits_integers = True
    expected = linear._multiply_integers(quantized_input(linear, x))
    assert torch.equal(linear(x), expected)
    torch.testing.assert_close(expected, reference, rtol=0, atol=1e-3)  # values up to 300


# State


def changed_forms(linear: PackedLinear) -> dict[str, Callable[[], object]]:
    tokens = quantized_input(linear, outlier_activation(3, linear.in_features, seed=0))
    return {
        "prepare": linear.prepare,
        "forward": lambda: linear(tokens),
        "restore": linear.restore,
        "cast": lambda: linear.to(torch.bfloat16),
        "cast back": linear.float,
        "prepare again": linear.prepare,
        "load": lambda: linear.load_state_dict(linear.state_dict()),
        "move": lambda: linear.to("cpu"),
    }


@integers_needed
@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("bits", range(2, 9))
def test_no_form_it_takes_changes_what_is_stored(bits: int, group_size: int | None) -> None:
    linear = packed_linear(bits, group_size=group_size)
    linear.execution = INTEGER
    before = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
    assert set(before) == {"packed", "scale", "zero"}
    for change in changed_forms(linear).values():
        change()
        after = linear.state_dict()
        assert set(after) == set(before)
        for name, tensor in before.items():
            assert after[name].dtype == tensor.dtype
            assert torch.equal(after[name], tensor)


@integers_needed
def test_the_fast_form_replaces_the_packed_one(without_kernel: None) -> None:
    linear = packed_linear()
    linear.execution = INTEGER
    linear.prepare()
    assert linear.packed is None
    integers = linear.codes()
    linear.restore()
    assert linear.packed is not None
    assert linear.panels is None
    assert torch.equal(linear.codes(), integers)


@integers_needed
def test_other_weights_can_be_loaded_over_prepared_ones() -> None:
    linear, other = packed_linear(), packed_linear(weight=random_weight(7, 24, seed=2))
    tokens = quantized_input(linear, outlier_activation(3, 24, seed=0))
    for each in (linear, other):
        each.execution = INTEGER
        each(tokens)
    assert not torch.equal(linear(tokens), other(tokens))
    linear.load_state_dict(other.state_dict())
    assert torch.equal(linear(tokens), other(tokens))


@integers_needed
def test_a_copy_computes_the_same_without_its_original() -> None:
    linear = packed_linear(group_size=8, bias=True)
    linear.execution = INTEGER
    tokens = quantized_input(linear, outlier_activation(3, 24, seed=0))
    expected = linear(tokens)
    state = linear.state_dict()
    again = copy.deepcopy(linear)
    del linear
    assert torch.equal(again(tokens), expected)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in state.items())


UNPICKLE = """
import pickle, sys, torch
torch.set_num_threads(1)
with open(sys.argv[1], "rb") as opened:
    linear, tokens, expected, state = pickle.load(opened)
assert linear.panels is None and linear._dequantized is None
for _ in range(2):
    assert torch.equal(linear(tokens), expected)
for name, tensor in linear.state_dict().items():
    assert torch.equal(tensor, state[name])
"""


@integers_needed
@pytest.mark.parametrize("group_size", [None, 8])
def test_a_pickle_computes_the_same_in_another_process(
    group_size: int | None, without_kernel: None, tmp_path: Path
) -> None:
    linear = packed_linear(group_size=group_size, bias=True)
    linear.execution = INTEGER
    tokens, state = quantized_input(linear, outlier_activation(3, 24, seed=0)), linear.state_dict()
    expected = linear(tokens)
    assert linear.packed is None, "the engine's layout is all there is"
    (tmp_path / "pickle").write_bytes(pickle.dumps((linear, tokens, expected, state)))
    process = run_forked(["-c", UNPICKLE, str(tmp_path / "pickle")], dict(os.environ))
    assert process.returncode == 0, process.stderr
    assert linear.packed is None
    assert torch.equal(linear(tokens), expected), "the original goes on as it was"


@integers_needed
@pytest.mark.parametrize("backend", ["reference", "integer"])
def test_a_pickle_holds_no_more_than_the_file(backend: Any, without_kernel: None) -> None:
    linear = packed_linear(shape=(64, 512))
    linear.execution = Execution(backend)
    size = len(pickle.dumps(linear))
    x = outlier_activation(3, 512, seed=0)
    linear(quantized_input(linear, x) if backend == "integer" else x)
    assert len(pickle.dumps(linear)) == size


@integers_needed
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_changes_the_output_and_keeps_the_grid(dtype: torch.dtype) -> None:
    linear = packed_linear(bias=True)
    linear.execution = INTEGER
    tokens = quantized_input(linear, outlier_activation(3, 24, seed=0))
    exact, scale = linear(tokens), linear.scale.clone()
    linear.to(dtype)
    assert linear.scale.dtype == torch.float32
    assert torch.equal(linear.scale, scale)
    assert linear.zero.dtype == torch.int16
    assert linear(tokens).dtype == dtype
    # The bias is rounded once, the output once.
    torch.testing.assert_close(linear(tokens).float(), exact, rtol=2e-2, atol=2e-2)


# Memory


@integers_needed
def test_packed_weights_stay_packed(without_kernel: None) -> None:
    linear = packed_linear(shape=(64, 256))
    tokens = quantized_input(linear, outlier_activation(3, 256, seed=0))
    linear.execution = INTEGER
    expected = linear(tokens)
    for backend in ("integer", "reference"):
        linear.restore()
        stored = linear.resident_bytes()
        assert stored == 64 * (packed_width(256, 4) + 6)
        linear.execution = Execution(backend, "packed")  # type: ignore[arg-type]
        for _ in range(2):
            assert torch.equal(linear(tokens), expected)
            linear(outlier_activation(3, 256, seed=0))
        assert linear.resident_bytes() == stored


@integers_needed
def test_resident_bytes_count_the_form_in_use(without_kernel: None) -> None:
    linear = packed_linear(shape=(64, 256))
    linear.execution = INTEGER
    linear.prepare()
    per_output = 4 + 2 + 4 + 4  # scale, zero, and both again as the product needs them
    assert linear.resident_bytes() == 64 * (256 + per_output)
    linear.execution = Execution("reference")
    linear.restore()
    linear(outlier_activation(3, 256, seed=0))
    assert linear.resident_bytes() == 64 * (packed_width(256, 4) + 6 + 256 * 4)


@integers_needed
def test_preparing_is_silent() -> None:
    """PyTorch warns of its frozen quantization; users cannot do anything about it."""
    linear = packed_linear()
    linear.execution = INTEGER
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        linear.prepare()
    assert not caught


def test_it_shows_its_sizes() -> None:
    assert repr(packed_linear(group_size=8)) == (
        "PackedLinear(24, 7, Integer(bits=4, symmetric=False, group_size=8))"
    )


# Gradients


@pytest.mark.parametrize("backend", ["reference", "integer"])
@pytest.mark.parametrize("memory", ["fast", "packed"])
@integers_needed
def test_a_gradient_passes_whatever_the_backend(backend: Any, memory: Any) -> None:
    """Behind a site of its own, in a layout that inference has left behind."""
    linear = packed_linear(group_size=8, bias=True)
    linear.execution = Execution(backend, memory)
    linear.site = SiteTransform(24, ActivationQuantizer(Integer(4), 0.9))
    linear.site.emits_integers = backend == "integer"
    x = outlier_activation(5, 24, seed=0)
    with torch.no_grad():
        inferred = linear(x)
    leaf, expected_leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    output = linear(leaf)
    output.square().sum().backward()
    site = SiteTransform(24, ActivationQuantizer(Integer(4), 0.9))
    expected = F.linear(site(expected_leaf), linear.dequantized(), linear.bias)
    expected.square().sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(inferred, expected.detach(), rtol=1e-4, atol=1e-4)
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0
    torch.testing.assert_close(leaf.grad, expected_leaf.grad)
    with torch.no_grad():
        assert torch.equal(linear(x), inferred), "training leaves nothing behind"
