"""Numbers at the ends of floating point: kernels and the plain formulas do the same with them.

A few odd values are planted at random places of ordinary rows. Whoever computes, with or without
gradients, gives the values of :mod:`duquant.ops.affine` and the gradients of autograd through them.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from duquant.formats.integer import Integer
from duquant.nn.activation import ActivationQuantizer
from duquant.ops.affine import AffineGrid, affine_grid, dequantize, fake_quantize, quantize
from duquant.ops.dual_transform import DualTransform, apply_in_steps, apply_transform
from duquant.ops.fake_quantize import fake_quantize_rows
from duquant.ops.integer_linear import Panel, integer_linear, scaled_product
from duquant.ops.integer_weight import PackedWeight
from duquant.ops.kernels import int4, rows, screen
from duquant.ops.packing import pack
from duquant.ops.quantized_tokens import decode_tokens, encode_tokens
from duquant.ops.rotation import find_rotation, random_orthogonal
from duquant.ops.rows_gradient import rows_gradient
from tests.outliers import outlier_activation

ODD = (torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1e-40, -1e-40, 1e-45, 3e38, -3e38)
SIZE = 32
"""Channels of a block that every machine's kernels multiply."""
needs_kernels = pytest.mark.skipif(
    not rows.is_available(), reason="needs an x86 processor with AVX2 and a C compiler"
)


def planted(count: int, *, width: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """Numbered float32 activations; first one odd value each, then up to five."""
    for number in range(count):
        chance = random.Random(number)
        columns = width or chance.choice([1, 2, 7, 16, 33, 64, 130])
        x = outlier_activation(3, columns, number)
        odd = chance.choices(ODD, k=chance.randint(1, 5)) if number >= len(ODD) else [ODD[number]]
        for value in odd:
            x[chance.randrange(3), chance.randrange(columns)] = value
        if number % 5 == 4:
            x[0] = odd[0]
        yield number, x


def assert_same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(params=["kernel", "pytorch"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pytorch":
        monkeypatch.setattr(rows, "is_available", lambda: False)
    elif not rows.is_available():
        pytest.skip("needs an x86 processor with AVX2 and a C compiler")


def in_float32(x: Tensor, bits: int, **options: Any) -> Tensor:
    """The formulas, in float32 or wider; the result has the dtype of ``x``."""
    return fake_quantize(x.to(torch.promote_types(x.dtype, torch.float32)), bits, **options).to(
        x.dtype
    )


def with_gradients(
    function: Callable[..., Tensor], x: Tensor, bits: int, *, symmetric: bool
) -> list[Tensor]:
    """Values, and gradients of the input and of both clip factors."""
    clip = torch.full((*x.shape[:-1], 1), 0.75, dtype=x.dtype)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).to(x.dtype)
    leaves = [leaf.clone().requires_grad_() for leaf in (x, clip, clip)]
    y = function(leaves[0], bits, symmetric=symmetric, clip_high=leaves[1], clip_low=leaves[2])
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_fake_quantization(dtype: torch.dtype, symmetric: bool) -> None:
    for number, x in planted(30):
        x, bits = x.to(dtype), (2, 4, 8)[number % 3]
        value, *gradients = with_gradients(fake_quantize_rows, x, bits, symmetric=symmetric)
        expected, *autograds = with_gradients(in_float32, x, bits, symmetric=symmetric)
        assert_same(value, expected)
        clips = {"symmetric": symmetric, "clip_high": 0.75, "clip_low": 0.75}
        assert_same(value, in_float32(x, bits, **clips))
        assert_same(value, fake_quantize_rows(x, bits, **clips))
        for row in range(len(x)):
            # Of equal ends the first gets the gradient here; autograd divides it among them.
            is_tied = any((x[row] == end).sum() > 1 for end in x[row].aminmax())
            for one, other in list(zip(gradients, autograds, strict=True))[is_tied:]:
                assert_sums_agree(one[row], other[row], x[row])


def assert_sums_agree(one: Tensor, other: Tensor, x: Tensor) -> None:
    """Sums over a row of terms as large as its largest entry, added in another order."""
    ordinary = x[x.abs() < 1e4].abs()
    largest = 1 + (float(ordinary.amax()) if len(ordinary) else 0)
    error = len(x) * 2 * torch.finfo(x.dtype).eps * largest
    # The smallest scale, 1e-5, has eight bits in float16.
    rtol = 1e-2 if x.dtype.itemsize == 2 else 1e-4
    torch.testing.assert_close(one, other, rtol=rtol, atol=error, equal_nan=True)


@needs_kernels
@pytest.mark.parametrize("symmetric", [False, True])
def test_sums_of_the_gradient(symmetric: bool) -> None:
    """Also with odd values among the gradients that arrive."""
    for (number, x), (_, other) in itertools.product(planted(20), list(planted(10))):
        arriving = outlier_activation(*x.shape, number + 1)
        arriving.view(-1)[number % x.numel()] = other[0, 0]
        grid = affine_grid(x, 4, symmetric=symmetric, clip_high=0.75, clip_low=0.75)
        ends = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)
        here = rows_gradient(x, arriving, *ends, *grid, 4, True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows, "is_available", lambda: False)
            there = rows_gradient(x, arriving, *ends, *grid, 4, True)
        for one, other in zip(here[2:], there[2:], strict=True):
            assert_same(one, other)
        for one, other in zip(here[:2], there[:2], strict=True):
            # Terms up to 300 steps of 15 · 1e4.
            torch.testing.assert_close(one, other, rtol=1e-3, atol=100, equal_nan=True)


@needs_kernels
def test_rows_meet_a_grid_that_knows_nothing_of_them() -> None:
    for number, x in planted(60):
        grid = affine_grid(outlier_activation(*x.shape, number), 4)
        assert_same(rows.quantize_rows(x, grid, 4), dequantize(quantize(x, grid, 4), grid))


@needs_kernels
def test_extremes() -> None:
    for _, x in planted(100):
        ends = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)
        for found, end in zip(rows.row_extremes(x), ends, strict=True):
            assert_same(found, end)
            first = (x == end).to(torch.uint8).argmax(dim=-1, keepdim=True)
            assert torch.equal(rows.find_in_rows(x, end), first)


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_encoded_tokens(dtype: torch.dtype, symmetric: bool) -> None:
    """Integers and grid mean what fake quantization gives, with gradients or without."""
    for number, x in planted(30):
        quantizer = ActivationQuantizer(Integer((2, 4, 8)[number % 3], symmetric), 0.9)
        tokens = quantizer.encoded(x.to(dtype))
        q, grid = decode_tokens(tokens)
        expected = dequantize(q.float(), grid)
        for enabled in (False, True):
            with torch.set_grad_enabled(enabled):
                leaf = x.to(dtype).requires_grad_(enabled)
                codes, (scale, zero) = quantizer.codes(leaf)
                found = AffineGrid(scale.detach(), zero.detach())
                assert_same(dequantize(codes.float(), found), expected)
                assert torch.equal(encode_tokens(codes, found), tokens)
                assert_same(quantizer(leaf), expected.to(dtype))


@needs_kernels
@pytest.mark.parametrize("shared", [False, True])
def test_transform(shared: bool) -> None:
    """Every entry of a block meets every entry of its matrix, also those that are zero."""
    for number, x in planted(40, width=4 * SIZE):
        generator = torch.Generator().manual_seed(number)
        matrices = random_orthogonal(2 if shared else 8, SIZE, generator)
        order = torch.randperm(x.shape[1], generator=generator).unsqueeze(0)
        transformation = DualTransform(matrices.view(2, -1, SIZE, SIZE), order)
        x = torch.where(x.isfinite(), x / 64, x)  # sums that overflow in one order only differ
        upstream = outlier_activation(*x.shape, number + 1)
        results = []
        for apply in (apply_transform, apply_in_steps):
            leaf = x.clone().requires_grad_()
            y = apply(leaf, transformation)
            results += [y.detach(), torch.autograd.grad(y, leaf, upstream)[0]]
            results += [apply(x, transformation), apply(upstream * x.sign(), transformation)]
        for one, other in zip(results[:4], results[4:], strict=True):
            # Sums of 32 float32 products, twice in a row, possibly in another order.
            largest = max(300.0, float(one.nan_to_num(0, 0, 0).abs().amax()))
            atol = 2 * SIZE * 2.0**-23 * largest
            torch.testing.assert_close(one, other, rtol=0, atol=atol, equal_nan=True)


@pytest.mark.skipif(not int4.is_available(), reason="needs the kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_integer_linear(dtype: torch.dtype) -> None:
    """Odd values in every float that a file or an activation may bring."""
    for number, x in planted(60, width=48):
        generator = torch.Generator().manual_seed(number)
        packed = pack(torch.randint(0, 16, (19, 48), generator=generator), 4)
        weight = PackedWeight(packed, largest=15)
        scale, zero, sums, bias = outlier_activation(4, 19, number)
        odd = x.flatten()[x.flatten().abs().argsort()]  # odd values at both ends
        (scale, zero, sums, bias)[number % 4][number % 19] = odd[-1 - number % 2]
        tokens = ActivationQuantizer(Integer(4), 0.9).encoded(x)
        panel = Panel(slice(None), weight, sums, zero, scale)
        result = integer_linear(tokens, [panel], bias if number % 8 < 4 else None, dtype)
        q, grid = decode_tokens(tokens)
        expected = scaled_product(q, grid, weight, sums, zero) * scale * grid.scale
        expected = expected + bias if number % 8 < 4 else expected
        torch.testing.assert_close(
            result, expected.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-2, equal_nan=True
        )


@pytest.mark.skipif(not screen.is_available(), reason="needs the kernel")
@pytest.mark.parametrize("selector", ["authors", "outlier"])
def test_rotation_search(selector: Literal["authors", "outlier"]) -> None:
    """Finite extremes do not mislead the screen; what is not finite is refused."""
    refused = 0
    for number, x in planted(25, width=128):

        def search(x: Tensor = x, number: int = number) -> Tensor:
            return find_rotation(
                x,
                block_size=64,
                max_steps=8,
                selector=selector,
                scope="per_block",
                generator=torch.Generator().manual_seed(number),
            )

        if not x.isfinite().all():
            refused += 1
            with pytest.raises(ValueError, match="calibration values of an activation"):
                search()
            continue
        found = search()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(screen, "_library", lambda: None)
            assert torch.equal(search(), found)
    assert 0 < refused < 25
