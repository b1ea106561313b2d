"""Tokens as bytes: what goes in comes out, and the rows may be treated as any tensor's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from duquant.ops.affine import AffineGrid, affine_grid, quantize
from duquant.ops.packing import packed_width
from duquant.ops.quantized_tokens import GRID_BYTES, decode_tokens, encode_tokens
from tests.outliers import outlier_activation, seeds

leading_shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


def quantized(shape: tuple[int, ...], bits: int, seed: int) -> tuple[Tensor, AffineGrid]:
    rows = outlier_activation(torch.Size(shape[:-1]).numel(), shape[-1], seed).view(shape)
    grid = affine_grid(rows, bits)
    return quantize(rows, grid, bits), grid


def assert_same(decoded: tuple[Tensor, AffineGrid], q: Tensor, grid: AffineGrid) -> None:
    integers, read = decoded
    assert integers.dtype == torch.uint8
    assert torch.equal(integers.float(), q)
    assert torch.equal(read.scale, grid.scale)
    assert torch.equal(read.zero, grid.zero)


@given(leading_shapes, st.integers(1, 37), st.integers(2, 8), seeds)
def test_decoding_restores_integers_and_grid(
    leading: tuple[int, ...], width: int, bits: int, seed: int
) -> None:
    q, grid = quantized((*leading, width), bits, seed)
    tokens = encode_tokens(q, grid)
    assert tokens.dtype == torch.uint8
    assert tokens.shape == (*leading, width + GRID_BYTES)
    assert_same(decode_tokens(tokens), q, grid)


@given(leading_shapes, st.integers(1, 37), st.integers(2, 8), seeds)
def test_packed_tokens_take_their_true_width(
    leading: tuple[int, ...], width: int, bits: int, seed: int
) -> None:
    q, grid = quantized((*leading, width), bits, seed)
    tokens = encode_tokens(q, grid, bits)
    assert tokens.shape == (*leading, packed_width(width, bits) + GRID_BYTES)
    assert_same(decode_tokens(tokens, width, bits), q, grid)


@pytest.mark.parametrize("bits", [None, 3, 4])
def test_rows_may_be_cut_joined_and_reordered(bits: int | None) -> None:
    """Caches do that to them; odd numbers of bytes leave the scales at odd places."""
    q, grid = quantized((2, 3, 7, 5), 3, seed=0)
    tokens = encode_tokens(q, grid, bits)
    order = torch.tensor([1, 0, 1])
    joined = torch.cat([tokens[order, :, :2], tokens[order, :, 4:]], dim=2).transpose(1, 2)

    def same(x: Tensor) -> Tensor:
        return torch.cat([x[order, :, :2], x[order, :, 4:]], dim=2).transpose(1, 2)

    width = None if bits is None else 5
    expected = AffineGrid(same(grid.scale), same(grid.zero))
    assert_same(decode_tokens(joined, width, bits), same(q), expected)


@pytest.mark.parametrize("zero", [-10_000.0, -1.0, 0.0, 255.0, 10_000.0])
@pytest.mark.parametrize("scale", [1e-5, 0.1, 1e4])
def test_grids_at_their_limits_survive(scale: float, zero: float) -> None:
    grid = AffineGrid(torch.tensor([[scale]]), torch.tensor([[zero]]))
    q = torch.tensor([[0.0, 255.0, 1.0]])
    assert_same(decode_tokens(encode_tokens(q, grid)), q, grid)


def test_four_bits_of_128_channels_take_70_bytes() -> None:
    q, grid = quantized((1, 128), 4, seed=0)
    assert encode_tokens(q, grid, 4).shape == (1, 70)
