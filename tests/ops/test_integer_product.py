"""Integer products against int64 arithmetic: not one unit may be off."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.ops.affine import AffineGrid
from duquant.ops.integer_linear import scaled_product
from duquant.ops.integer_product import (
    EXACT_FLOAT32,
    columns_at_once,
    engine,
    prepare_weight,
)
from tests.outliers import seeds

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(engine(CPU) is None, reason="this processor has no int8 engine")
BITS = range(2, 9)
SHAPES = ((1, 1, 1), (1, 64, 16), (3, 7, 5), (2, 129, 33), (33, 48, 1))
"""Rows, columns, outputs: single ones, odd ones, and some that fill vectors."""


def integers(rows: int, columns: int, bits: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.uint8)


def signed(q: Tensor, bits: int) -> Tensor:
    return (q.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def assert_exact(q: Tensor, q_weight: Tensor, activation_bits: int, weight_bits: int) -> None:
    weight = prepare_weight(q_weight, activation_bits=activation_bits, weight_bits=weight_bits)
    product = weight.product(q)
    assert product.dtype == torch.float32
    assert torch.equal(product.long(), q.long() @ q_weight.long().T)
    assert torch.equal(weight.integers(), q_weight)
    assert weight.num_bytes >= q_weight.numel()


@pytest.mark.parametrize("weight_bits", BITS)
@pytest.mark.parametrize("activation_bits", BITS)
def test_every_pair_of_widths_is_exact(activation_bits: int, weight_bits: int) -> None:
    for seed, (rows, columns, outputs) in enumerate(SHAPES):
        q = integers(rows, columns, activation_bits, seed)
        q_weight = signed(integers(outputs, columns, weight_bits, seed + 100), weight_bits)
        assert_exact(q, q_weight, activation_bits, weight_bits)


@pytest.mark.parametrize("weight_bits", BITS)
@pytest.mark.parametrize("activation_bits", BITS)
def test_extremes_saturate_nothing(activation_bits: int, weight_bits: int) -> None:
    """Neighbouring products of the largest numbers are what overflows a 16-bit register."""
    columns = min(columns_at_once(activation_bits, weight_bits), 1024)
    q = torch.full((3, columns), 2**activation_bits - 1, dtype=torch.uint8)
    for extreme in (0, 2**weight_bits - 1):
        q_weight = signed(torch.full((5, columns), extreme, dtype=torch.uint8), weight_bits)
        assert_exact(q, q_weight, activation_bits, weight_bits)


@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 40), seeds)
def test_eight_times_eight_bits_is_exact_for_every_shape(
    rows: int, columns: int, outputs: int, seed: int
) -> None:
    q_weight = signed(integers(outputs, columns, 8, seed + 1), 8)
    assert_exact(integers(rows, columns, 8, seed), q_weight, 8, 8)


@pytest.mark.parametrize("weight_bits", BITS)
@pytest.mark.parametrize("activation_bits", BITS)
def test_as_many_columns_as_float32_counts(activation_bits: int, weight_bits: int) -> None:
    columns = columns_at_once(activation_bits, weight_bits)
    largest = (2**activation_bits - 1) * 2 ** (weight_bits - 1)
    assert columns * largest < EXACT_FLOAT32 <= (columns + 1) * largest


def test_the_widest_panel_of_eight_bits_is_exact() -> None:
    """Every sum lies just below ``2**24``."""
    columns = columns_at_once(8, 8)
    q = torch.full((1, columns), 255, dtype=torch.uint8)
    assert_exact(q, torch.full((1, columns), -128, dtype=torch.int8), 8, 8)


@pytest.mark.parametrize("weight_bits", [2, 4, 8])
@pytest.mark.parametrize("activation_bits", [2, 4, 8])
def test_zero_points_are_corrected_exactly(activation_bits: int, weight_bits: int) -> None:
    q = integers(9, 37, activation_bits, 0)
    q_weight = signed(integers(11, 37, weight_bits, 1), weight_bits)
    zero = torch.arange(9.0).unsqueeze(1) * 3 - 7
    weight_zero = torch.arange(11.0) - 2 ** (weight_bits - 1)
    expected = (q.long() - zero.long()) @ (q_weight.long() - weight_zero.long().unsqueeze(1)).T
    product = scaled_product(
        q,
        AffineGrid(torch.ones(9, 1), zero),
        prepare_weight(q_weight, activation_bits=activation_bits, weight_bits=weight_bits),
        q_weight.sum(dim=1).float() - 37 * weight_zero,
        weight_zero,
    )
    assert torch.equal(product.long(), expected)


def test_some_columns_of_a_wider_tensor_need_no_copy() -> None:
    q = integers(5, 64, 4, 0)
    q_weight = signed(integers(8, 20, 4, 1), 4)
    weight = prepare_weight(q_weight, activation_bits=4, weight_bits=4)
    assert torch.equal(weight.product(q[:, 10:30]).long(), q[:, 10:30].long() @ q_weight.long().T)


def test_the_product_is_an_operator_that_compiled_graphs_may_hold() -> None:
    weight = prepare_weight(signed(integers(4, 16, 4, 1), 4), activation_bits=4, weight_bits=4)
    arguments = (integers(2, 16, 4, 0), weight.number, 4)
    torch.library.opcheck(torch.ops.duquant.fbgemm_product.default, arguments)


def test_a_device_without_int8_units_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duquant.ops.integer_product.engine", lambda device: None)
    with pytest.raises(ValueError, match=r"cpu has no int8 matrix product.*backend='reference'"):
        prepare_weight(torch.zeros(4, 4, dtype=torch.int8), activation_bits=4, weight_bits=4)
