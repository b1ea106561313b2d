"""Rows as bytes: decoded they are what fake quantization gives, however they were cut."""

import pytest
import torch

from duquant.formats.integer import Integer
from duquant.formats.mxfp4 import MXFP4
from duquant.formats.number_format import Clip, NumberFormat, split_rows
from duquant.formats.nvfp4 import NVFP4
from duquant.formats.row_bytes import decode_rows, encode_rows, row_width
from duquant.formats.table import FORMATS
from duquant.ops.affine import affine_grid, quantize
from duquant.ops.quantized_tokens import encode_tokens

FORMS = [kind() for name, kind in FORMATS.items() if name != "unquantized"]
FORMS += [Integer(3, group_size=32), Integer(8, symmetric=True), Integer(11)]


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("columns", [64, 80, 96])
def test_decoded_rows_are_the_fake_quantized_ones(form: NumberFormat, columns: int) -> None:
    form = form.fitted_to(columns)
    x = torch.randn(2, 3, 5, columns, generator=torch.Generator().manual_seed(columns))
    peak = torch.tensor(3.0)  # as calibrated: some entries exceed it
    encoded = encode_rows(form, x, Clip(0.9, 0.9), peak)
    assert encoded.dtype == torch.uint8
    assert encoded.shape == (2, 3, 5, row_width(form, columns))
    expected = form.fake_quantize(split_rows(x, form.group_size), Clip(0.9, 0.9), peak)
    assert torch.equal(decode_rows(form, encoded, columns, peak), expected.view(x.shape))
    one_by_one = [encode_rows(form, x[:, :, [token]], Clip(0.9, 0.9), peak) for token in range(5)]
    assert torch.equal(torch.cat(one_by_one, dim=2), encoded)
    turned = encoded.transpose(1, 2)[:, 1:]
    again = decode_rows(form, turned, columns, peak)
    assert torch.equal(again, expected.view(x.shape).transpose(1, 2)[:, 1:])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_integers_are_laid_out_as_packed_tokens(bits: int, symmetric: bool) -> None:
    x = torch.randn(4, 3, 24, generator=torch.Generator().manual_seed(0))
    grid = affine_grid(x, bits, symmetric=symmetric, clip_high=0.9, clip_low=0.9)
    tokens = encode_tokens(quantize(x, grid, bits), grid, bits)
    assert torch.equal(encode_rows(Integer(bits, symmetric), x, Clip(0.9, 0.9)), tokens)


def test_bytes_of_a_head() -> None:
    assert row_width(Integer(4), 128) == 64 + 6
    assert row_width(MXFP4(), 128) == 64 + 4
    assert row_width(NVFP4(), 128) == 64 + 8
