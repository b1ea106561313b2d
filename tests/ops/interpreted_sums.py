"""The Triton kernel of scaled sums in Triton's interpreter, and a whole linear that ends in it.

``test_triton_kernels.py`` runs this file in a process of its own, with ``TRITON_INTERPRET=1``.
"""

import pytest
import torch
from torch import Tensor

from duquant.ops.affine import AffineGrid
from duquant.ops.integer_linear import Panel, integer_linear
from duquant.ops.integer_product import prepare_weight, weight_sums
from duquant.ops.kernel_presence import _ANNOUNCED, _KERNELS
from duquant.ops.packing import pack
from duquant.ops.quantized_tokens import encode_tokens
from duquant.ops.scaled_sums import scaled_sums_in_steps
from duquant.ops.triton_kernels import int4
from duquant.ops.triton_kernels import scaled_sums as triton_sums
from tests.ops.launches import LAUNCHES, noted_launches
from tests.outliers import outlier_activation

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities
SIZES = [(1, 1, 1), (3, 7, 5), (2, 1025, 1030), (1, 64, 2049), (4, 33, 1030), (17, 2, 16)]
"""Tokens, inputs, outputs: parts of a tile, and several of them."""
FEW = 2
"""Tokens whose outputs are shared by several programs; with more the interpreter is slow."""
TRUNCATED = 2.0**-7
"""The interpreter cuts bfloat16 off where a GPU rounds it."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def arguments(
    rows: int, inputs: int, out: int, *, has_zero: bool = True
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Products beyond what float32 counts, tokens, and scale, zero point, sums and bias."""
    generator = torch.Generator().manual_seed(rows)
    product = torch.randint(-(2**25), 2**25, (rows, out), generator=generator, dtype=torch.int32)
    q = torch.randint(0, 256, (rows, inputs), generator=generator, dtype=torch.uint8)
    zero = torch.randint(-9000, 9000, (rows, 1), generator=generator).float() * has_zero
    tokens = encode_tokens(q, AffineGrid(zero.abs() / 700 + 0.1, zero))
    scale, zeros, sums, bias = outlier_activation(4, out, seed=2)
    return product, tokens, [scale, zeros.round() * has_zero, (sums * 99).round(), bias]


@pytest.fixture(autouse=True)
def _kernel_that_is_right() -> None:
    assert triton_sums.is_available()


@pytest.mark.parametrize("has_zero", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_definition(
    size: tuple[int, int, int], has_zero: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, whatever integers are kept in."""
    monkeypatch.setattr(triton_sums, "FEW_TOKENS", FEW)
    product, tokens, (*rows, bias) = arguments(*size, has_zero=has_zero)
    for dtype, each in zip(DTYPES, (bias, None, bias, None), strict=True):
        expected = scaled_sums_in_steps(product, tokens, *rows, each, dtype)
        error = TRUNCATED if dtype == torch.bfloat16 else 0
        for given in (product, product.float()):
            found = triton_sums.scaled_sums(given, tokens, *rows, each, dtype)
            torch.testing.assert_close(found, expected, rtol=error, atol=0)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_what_belongs_to_outputs_may_be_of_any_float(dtype: torch.dtype) -> None:
    product, tokens, rows = arguments(5, 37, 70)
    halved = [row.clamp(-6e4, 6e4).to(dtype) for row in rows]
    found = triton_sums.scaled_sums(product, tokens, *halved, torch.float32)
    assert torch.equal(found, scaled_sums_in_steps(product, tokens, *halved, torch.float32))


def test_shapes_that_need_care() -> None:
    product, tokens, (*rows, bias) = arguments(5, 37, 70)
    expected = scaled_sums_in_steps(product, tokens, *rows, bias, torch.float32)
    wider = torch.nn.functional.pad(product, (0, 2, 0, 12))[:5, :70]  # as torch._int_mm gives it
    for given in (wider, product.t().contiguous().t()):
        for each in (tokens, tokens.t().contiguous().t(), tokens.repeat(1, 2)[:, : 37 + 6]):
            found = triton_sums.scaled_sums(given, each, *rows, bias, torch.float32)
            assert torch.equal(found, expected)
            assert found.is_contiguous()
    for given in (product[:0], product[:, :0]):
        shape = given.shape
        each = [row[: shape[1]] for row in (*rows, bias)]
        found = triton_sums.scaled_sums(given, tokens[: shape[0]], *each, torch.float64)
        assert found.shape == shape
        assert found.dtype == torch.float64
    wide = product.double()
    found = triton_sums.scaled_sums(wide, tokens, *rows, bias, torch.float32)
    assert torch.equal(found, scaled_sums_in_steps(wide, tokens, *rows, bias, torch.float32))


def test_what_is_not_finite_stays_in_its_token() -> None:
    product, tokens, (*rows, bias) = arguments(3, 37, 70)
    tokens[1, 37:41] = torch.tensor([torch.nan]).view(torch.uint8)
    found = triton_sums.scaled_sums(product, tokens, *rows, bias, torch.float32)
    assert found.isfinite().all(dim=1).tolist() == [True, False, True]
    assert found[1].isnan().all()


def test_packed_and_laid_out_weights_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duquant.ops.integer_product.layout_kernels", lambda _: ["cuda"])
    _, tokens, (*rows, bias) = arguments(18, 66, 21)
    w = torch.randint(0, 16, (21, 66), generator=torch.Generator().manual_seed(1)).byte()
    weight = prepare_weight((w.int() - 8).to(torch.int8), activation_bits=8, weight_bits=4)
    product = weight.product(tokens[:, :66])
    found = triton_sums.scaled_sums(product, tokens, *rows, bias, torch.float32)
    whole = int4.packed_linear(tokens, pack(w, 4), *rows, bias, 255, torch.float32)
    assert torch.equal(found, whole)


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (6, 6), (8, 4), (4, 8)])
@pytest.mark.parametrize("count", [3, 18])
def test_a_linear_of_pytorchs_product_ends_in_one_launch(
    weight_bits: int, activation_bits: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: its product of signed bytes, which the processor has too, then the kernel."""
    monkeypatch.setattr("duquant.ops.integer_product.layout_kernels", lambda _: ["cuda"])
    name = "duquant::scaled_sums", "cpu"
    monkeypatch.setitem(_ANNOUNCED, name, triton_sums.is_available)
    monkeypatch.setitem(_KERNELS, name, triton_sums.scaled_sums)
    generator = torch.Generator().manual_seed(count)
    q = torch.randint(0, 2**activation_bits, (count, 37), generator=generator).byte()
    w = torch.randint(0, 2**weight_bits, (21, 37), generator=generator) - 2 ** (weight_bits - 1)
    token_zero = torch.arange(count).float().unsqueeze(1) - 3
    zero, scale = torch.arange(21.0) - 9, torch.arange(21.0) / 64 + 1
    bits = {"activation_bits": activation_bits, "weight_bits": weight_bits}
    weight = prepare_weight(w.to(torch.int8), **bits)
    panel = Panel(slice(0, 37), weight, weight_sums(weight, 37, zero), zero, scale)
    tokens = encode_tokens(q, AffineGrid(torch.full_like(token_zero, 0.5), token_zero))
    launched = noted_launches(monkeypatch)
    found = integer_linear(tokens, [panel], None, torch.float32)
    exact = (q.double() - token_zero) @ (w.double() - zero.unsqueeze(1)).T
    assert torch.equal(found, (exact * scale * 0.5).float())
    assert launched == ["scale_sums"]
    assert len(launched) == LAUNCHES["duquant::scaled_sums"](())
