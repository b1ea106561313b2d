"""The Triton kernels of packed weights in Triton's interpreter, which computes as a GPU would.

``test_triton_kernels.py`` runs this file in a process of its own, with ``TRITON_INTERPRET=1``.
"""

import pytest
import torch

from duquant.ops.affine import AffineGrid
from duquant.ops.packed_product import linear_in_steps, product_in_steps
from duquant.ops.packing import pack
from duquant.ops.quantized_tokens import encode_tokens
from duquant.ops.triton_kernels import int4
from tests.outliers import outlier_activation

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities
SIZES = [
    *((1, 130, 70), (3, 2, 1), (5, 66, 19), (16, 546, 65)),  # parts of the inputs
    *((17, 66, 19), (70, 130, 65), (131, 130, 130)),  # whole tiles and the rest
]
"""Tokens, inputs, outputs."""
TRUNCATED = 2.0**-7
"""The interpreter cuts bfloat16 off where a GPU rounds it."""


def arguments(rows: int, columns: int, out: int, largest: int = 15) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    q = torch.randint(0, largest + 1, (rows, columns), generator=generator, dtype=torch.uint8)
    w = torch.randint(0, 16, (out, columns), generator=generator, dtype=torch.uint8)
    q[:1], w[:1] = largest, 15
    zero = torch.randint(-9000, 9000, (rows, 1), generator=generator).float()
    tokens = encode_tokens(q, AffineGrid(zero.abs() / 700 + 0.1, zero))
    scale, zeros, sums, bias = outlier_activation(4, out, seed=2)
    return q, tokens, pack(w, 4), scale, zeros.round(), sums.round(), bias


@pytest.fixture(autouse=True)
def _kernels_that_are_right() -> None:
    assert int4.is_available()


@pytest.mark.parametrize("largest", [15, 128, 255])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_definition(size: tuple[int, int, int], largest: int) -> None:
    q, tokens, packed, *rows, bias = arguments(*size, largest)
    expected = product_in_steps(q, packed, largest)
    assert torch.equal(int4.packed_product(q, packed, largest), expected)
    kinds = [(bias, torch.float32), (None, torch.float16), (bias, torch.bfloat16)]
    for each, dtype in kinds[: 3 if size[0] in (1, 5, 17) else 1]:
        found = int4.packed_linear(tokens, packed, *rows, each, largest, dtype)
        expected = linear_in_steps(tokens, packed, *rows, each, largest, dtype)
        error = TRUNCATED if dtype == torch.bfloat16 else 0
        torch.testing.assert_close(found, expected, rtol=error, atol=0)


@pytest.mark.parametrize(("largest", "inputs"), [(127, 16_602), (255, 8302)])
def test_the_largest_sums_are_exact(
    largest: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond ``2**24`` float32 rounds them, once, as the definition does."""
    monkeypatch.setattr(int4, "FEW_BLOCK", 2048)  # or the interpreter takes seconds
    q, packed = torch.full((2, inputs), largest, dtype=torch.uint8), torch.zeros(3, inputs // 2)
    q[0, 0] = largest - 1
    packed[1] = 255
    expected = product_in_steps(q, packed.byte(), largest)
    assert float(expected[1, 0]) < -(2**24)
    assert torch.equal(int4.packed_product(q, packed.byte(), largest), expected)


def test_shapes_that_need_care() -> None:
    q, tokens, packed, *rows, _ = arguments(5, 66, 19)
    odd = torch.empty(tokens.numel() + 1, dtype=torch.uint8)[1:].view(tokens.shape).copy_(tokens)
    assert odd.data_ptr() % 2
    for each in (odd, tokens.t().contiguous().t()):
        found = int4.packed_linear(each, packed, *rows, None, 15, torch.float32)
        expected = linear_in_steps(tokens, packed, *rows, None, 15, torch.float32)
        assert torch.equal(found, expected)
    assert int4.packed_product(q[:0], packed, 15).shape == (0, 19)
    assert int4.packed_product(q, packed[:0], 15).shape == (5, 0)
    q, _, packed, *_ = arguments(3, 33, 4)
    assert torch.equal(int4.packed_product(q, packed, 15), product_in_steps(q, packed, 15))


@pytest.mark.parametrize("rows", [3, 19])
def test_what_is_not_finite_stays_in_its_token(rows: int) -> None:
    _, tokens, packed, *others, bias = arguments(rows, 66, 19)
    tokens[1, 66:70] = torch.tensor([torch.nan]).view(torch.uint8)
    finite = int4.packed_linear(tokens, packed, *others, bias, 15, torch.float32).isfinite()
    assert finite.all(dim=1).tolist() == [row != 1 for row in range(rows)]
    assert not finite[1].any()
