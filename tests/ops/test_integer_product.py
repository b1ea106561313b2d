"""Integer products against int64 arithmetic: not one unit may be off."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.ops.affine import AffineGrid
from duquant.ops.fbgemm_product import FbgemmWeight
from duquant.ops.integer_linear import scaled_product
from duquant.ops.integer_product import (
    EXACT_FLOAT32,
    columns_at_once,
    engine,
    layout_kernels,
    prepare_weight,
    reads_packed,
)
from duquant.ops.integer_weight import KernelName
from tests.outliers import seeds

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(engine(CPU) is None, reason="this processor has no int8 engine")
BITS = range(2, 9)
KERNELS = layout_kernels(CPU)
every_kernel = pytest.mark.parametrize("kernel", KERNELS)
SHAPES = ((1, 1, 1), (1, 64, 16), (3, 7, 5), (2, 129, 33), (33, 48, 1))
"""Rows, columns, outputs: single ones, odd ones, and some that fill vectors."""


def integers(rows: int, columns: int, bits: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.uint8)


def signed(q: Tensor, bits: int) -> Tensor:
    return (q.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def assert_exact(
    q: Tensor, q_weight: Tensor, activation_bits: int, weight_bits: int, kernel: KernelName
) -> None:
    bits = {"activation_bits": activation_bits, "weight_bits": weight_bits}
    weight = prepare_weight(q_weight, **bits, kernel=kernel)
    product = weight.product(q)
    assert product.dtype == torch.float32
    assert torch.equal(product.long(), q.long() @ q_weight.long().T)
    assert torch.equal(weight.integers(), q_weight)
    assert weight.num_bytes >= q_weight.numel()


@every_kernel
@pytest.mark.parametrize("weight_bits", BITS)
@pytest.mark.parametrize("activation_bits", BITS)
def test_every_pair_of_widths_is_exact(
    activation_bits: int, weight_bits: int, kernel: KernelName
) -> None:
    for seed, (rows, columns, outputs) in enumerate(SHAPES):
        q = integers(rows, columns, activation_bits, seed)
        q_weight = signed(integers(outputs, columns, weight_bits, seed + 100), weight_bits)
        assert_exact(q, q_weight, activation_bits, weight_bits, kernel)


@every_kernel
@pytest.mark.parametrize("weight_bits", BITS)
@pytest.mark.parametrize("activation_bits", BITS)
def test_extremes_saturate_nothing(
    activation_bits: int, weight_bits: int, kernel: KernelName
) -> None:
    """Neighbouring products of the largest numbers are what overflows a 16-bit register."""
    columns = min(columns_at_once(activation_bits, weight_bits), 1024)
    q = torch.full((3, columns), 2**activation_bits - 1, dtype=torch.uint8)
    for extreme in (0, 2**weight_bits - 1):
        q_weight = signed(torch.full((5, columns), extreme, dtype=torch.uint8), weight_bits)
        assert_exact(q, q_weight, activation_bits, weight_bits, kernel)


@every_kernel
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 40), seeds)
def test_eight_times_eight_bits_is_exact_for_every_shape(
    kernel: KernelName, rows: int, columns: int, outputs: int, seed: int
) -> None:
    q_weight = signed(integers(outputs, columns, 8, seed + 1), 8)
    assert_exact(integers(rows, columns, 8, seed), q_weight, 8, 8, kernel)


@pytest.mark.parametrize("weight_bits", BITS)
@pytest.mark.parametrize("activation_bits", BITS)
def test_as_many_columns_as_float32_counts(activation_bits: int, weight_bits: int) -> None:
    columns = columns_at_once(activation_bits, weight_bits)
    largest = (2**activation_bits - 1) * 2 ** (weight_bits - 1)
    assert columns * largest < EXACT_FLOAT32 <= (columns + 1) * largest


@every_kernel
@pytest.mark.parametrize("rows", [1, 4, 130])
def test_the_widest_panel_of_eight_bits_is_exact(rows: int, kernel: KernelName) -> None:
    """Every sum lies just below ``2**24``."""
    columns = columns_at_once(8, 8)
    q = torch.full((rows, columns), 255, dtype=torch.uint8)
    assert_exact(q, torch.full((33, columns), -128, dtype=torch.int8), 8, 8, kernel)


@every_kernel
def test_no_tokens_give_no_products(kernel: KernelName) -> None:
    assert_exact(integers(0, 64, 4, 0), signed(integers(5, 64, 4, 1), 4), 4, 4, kernel)


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


@every_kernel
def test_the_product_is_an_operator_that_compiled_graphs_may_hold(kernel: KernelName) -> None:
    bits = {"activation_bits": 4, "weight_bits": 4}
    weight: Any = prepare_weight(signed(integers(4, 16, 4, 1), 4), **bits, kernel=kernel)
    arguments = (integers(2, 16, 4, 0), weight.number, 4)
    operator = getattr(torch.ops.duquant, f"{kernel}_product").default
    torch.library.opcheck(operator, arguments)


def test_a_kernel_that_is_not_there_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the machine that a pickled model is loaded on."""
    monkeypatch.setattr("duquant.ops.integer_product.exact_bits", lambda: 0)
    q_weight = signed(integers(4, 16, 4, 1), 4)
    weight = prepare_weight(q_weight, activation_bits=4, weight_bits=4, kernel="onednn")
    assert isinstance(weight, FbgemmWeight)


@pytest.mark.parametrize(("safe", "split"), [(15, True), (16, False)])
def test_eight_times_eight_bits_are_split_where_they_would_saturate(
    safe: int, split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duquant.ops.integer_product.exact_bits", lambda: safe)
    q_weight = signed(integers(4, 16, 8, 1), 8)
    weight: Any = prepare_weight(q_weight, activation_bits=8, weight_bits=8, kernel="onednn")
    assert weight.split is split
    weight = prepare_weight(q_weight, activation_bits=7, weight_bits=8, kernel="onednn")
    assert not weight.split


@pytest.mark.parametrize("weight_bits", BITS)
@pytest.mark.parametrize("activation_bits", BITS)
def test_the_product_that_cuda_takes_is_exact(
    activation_bits: int, weight_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor has it too; only activations of 8 bits are no signed bytes."""
    monkeypatch.setattr("duquant.ops.integer_product.layout_kernels", lambda _: ["cuda"])
    bits = {"activation_bits": activation_bits, "weight_bits": weight_bits}
    for seed, (rows, columns, outputs) in enumerate([*SHAPES, (19, 64, 24), (0, 5, 3)]):
        wider = integers(rows, columns + 6, activation_bits, seed)
        wider[:1] = 2**activation_bits - 1
        q, before = wider[:, :columns], wider.clone()  # as tokens lie
        q_weight = signed(integers(outputs, columns, weight_bits, seed + 100), weight_bits)
        q_weight[:1] = -(2 ** (weight_bits - 1))
        weight: Any = prepare_weight(q_weight, **bits)
        for each in (q, q.contiguous()):
            assert torch.equal(weight.product(each).long(), q.long() @ q_weight.long().T)
        assert torch.equal(wider, before)
        assert torch.equal(weight.integers(), q_weight)
        assert (weight.shifted is not None) is (activation_bits == 8)


@pytest.mark.parametrize(
    ("device", "activation_bits", "columns", "is_read"),
    [
        *(("cpu", 7, 4096, True), ("cpu", 8, 4096, False), ("cpu", 4, 4096, True)),
        *(("cuda", 4, 4096, True), ("cuda", 8, 8224, True), ("cuda", 8, 8226, False)),
    ],
)
def test_which_activations_meet_packed_weights(
    device: str, activation_bits: int, columns: int, is_read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duquant.ops.integer_product.has_kernel", lambda *_: True)
    bits = {"activation_bits": activation_bits, "weight_bits": 4}
    assert reads_packed(**bits, columns=columns, device_type=device) is is_read
    assert not reads_packed(**bits | {"weight_bits": 8}, columns=columns, device_type=device)


def test_a_device_without_int8_units_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duquant.ops.integer_product.engine", lambda device: None)
    with pytest.raises(ValueError, match=r"cpu has no int8 matrix product.*backend='reference'"):
        prepare_weight(torch.zeros(4, 4, dtype=torch.int8), activation_bits=4, weight_bits=4)
