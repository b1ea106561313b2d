"""Bit packing against a reference that writes the bits as text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.ops.packing import ROWS_AT_ONCE, integer_dtype, pack, packed_width, unpack
from tests.outliers import seeds

widths = st.integers(2, 15)


def random_integers(rows: int, columns: int, bits: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.int32)


def packed_as_text(row: list[int], bits: int) -> list[int]:
    stream = "".join(format(value, f"0{bits}b")[::-1] for value in row)
    stream += "0" * (-len(stream) % 8)
    return [int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)]


@given(widths, st.integers(0, 5), st.integers(0, 37), seeds)
def test_unpacking_restores_every_integer(bits: int, rows: int, columns: int, seed: int) -> None:
    q = random_integers(rows, columns, bits, seed)
    packed = pack(q, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_width(columns, bits))
    restored = unpack(packed, bits, columns)
    assert restored.dtype == integer_dtype(bits)
    assert torch.equal(restored.int(), q)


@given(widths, st.integers(1, 20), seeds)
def test_bytes_are_those_of_the_reference(bits: int, columns: int, seed: int) -> None:
    q = random_integers(2, columns, bits, seed)
    expected = [packed_as_text(row, bits) for row in q.tolist()]
    assert pack(q, bits).tolist() == expected


@pytest.mark.parametrize("bits", range(1, 16))
@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (0, 8), (3, 0), (0, 0)])
def test_nothing_is_packed_into_nothing(bits: int, rows: int, columns: int) -> None:
    q = torch.zeros(rows, columns, dtype=torch.int32)
    packed = pack(q, bits)
    assert packed.shape == (rows, packed_width(columns, bits))
    assert packed.dtype == torch.uint8
    assert unpack(packed, bits, columns).shape == (rows, columns)


@pytest.mark.parametrize("bits", range(2, 16))
def test_extremes_of_every_width(bits: int) -> None:
    q = torch.tensor([[0, 2**bits - 1, 0, 1, 2**bits - 1]])
    assert torch.equal(unpack(pack(q, bits), bits, 5).long(), q)


def test_two_integers_of_four_bits_share_a_byte_first_in_the_low_half() -> None:
    assert pack(torch.tensor([[1, 2, 3]]), 4).tolist() == [[0x21, 0x03]]


def test_integers_held_as_floats_pack_too() -> None:
    q = random_integers(3, 7, 5, seed=0)
    assert torch.equal(pack(q.float(), 5), pack(q, 5))


def test_more_rows_than_are_expanded_at_once() -> None:
    q = random_integers(2 * ROWS_AT_ONCE + 1, 3, 3, seed=0)
    assert torch.equal(unpack(pack(q, 3), 3, 3).int(), q)


@pytest.mark.parametrize("bits", range(2, 16))
@pytest.mark.parametrize("negative", [False, True])
def test_a_value_that_does_not_fit_is_refused(bits: int, negative: bool) -> None:
    value = -1 if negative else 2**bits
    with pytest.raises(ValueError, match=f"do not fit into {bits} bits") as error:
        pack(torch.tensor([[0, value]]), bits)
    assert str(value) in str(error.value)


def packed_bit_by_bit(row: list[int], bits: int) -> list[int]:
    stored = [0] * packed_width(len(row), bits)
    for place in range(len(row) * bits):
        integer, bit = divmod(place, bits)
        stored[place // 8] |= (row[integer] >> bit & 1) << (place % 8)
    return stored


@given(st.sampled_from((2, 4, 8)), st.integers(1, 37), seeds)
def test_widths_that_divide_a_byte_take_a_shorter_way_to_the_same_bytes(
    bits: int, columns: int, seed: int
) -> None:
    q = random_integers(3, columns, bits, seed)
    packed = pack(q, bits)
    assert packed.tolist() == [packed_bit_by_bit(row, bits) for row in q.tolist()]
    assert torch.equal(unpack(packed, bits, columns).int(), q)


@pytest.mark.parametrize("bits", range(2, 9))
def test_bytes_that_are_not_contiguous_unpack_too(bits: int) -> None:
    q = random_integers(4, 9, bits, seed=0)
    packed = torch.cat([pack(q, bits), torch.full((4, 2), 255, dtype=torch.uint8)], dim=1)
    assert torch.equal(unpack(packed[:, :-2], bits, 9).int(), q)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 16.0])
def test_what_is_no_integer_of_this_width_is_refused(value: float) -> None:
    q = torch.zeros(3, 8)
    q[1, 5] = value
    with pytest.raises(ValueError, match=r"values .* do not fit into 4 bits"):
        pack(q, 4)
