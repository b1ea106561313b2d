"""Hard cases of every operator that has kernels, and what a kernel may change in them."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from duquant.ops.affine import AffineGrid, affine_grid
from duquant.ops.hadamard import hadamard_matrix
from duquant.ops.packing import pack
from duquant.ops.quantized_tokens import encode_tokens
from duquant.ops.rotation import random_orthogonal
from tests.outliers import outlier_activation

SIZE = 64
"""Channels of a block that every machine's kernels multiply."""


class Case(NamedTuple):
    """One call of an operator.

    Attributes:
        name: what is special about it.
        arguments: of the operator.
        learns: which of them take a gradient.
        error: largest difference of values and of gradients, beside one in 1e-4 of each; 0: equal
            to the last bit.
        look: what of the results is promised, where not all of them are.
    """

    name: str
    arguments: tuple[Any, ...]
    learns: tuple[int, ...] = ()
    error: tuple[float, float] = (0, 0)
    look: Callable[[list[Any], list[Tensor]], list[Tensor]] = lambda _, results: results


def activations(width: int) -> Iterator[tuple[str, Tensor]]:
    """Shapes, strides and dtypes of an activation ``(..., width)``."""
    x = outlier_activation(30, width, seed=3)
    yield "plain", x
    yield "one token", x[:1]
    yield "a vector", x[0]
    yield "more dimensions", x.view(5, 3, 2, width)
    yield "transposed tokens", x.view(5, 6, width).transpose(0, 1)
    yield "every other channel", outlier_activation(7, 2 * width, seed=4)[:, ::2]
    yield "columns in memory", outlier_activation(width, 9, seed=5).t()
    yield "one token for many", x[:1].expand(4, width)
    yield "no tokens", x[:0]
    yield "no tokens of no batches", x.view(5, 6, width)[:0, :0]
    yield "float64", x.double()
    yield "bfloat16", x.bfloat16()


def transform_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    for blocks, size, times in [(3, SIZE, 1), (2, SIZE, 0), (2, SIZE, 2), (5, 6, 1)]:
        width = blocks * size
        orders = [torch.randperm(width, generator=generator) for _ in range(times)]
        permutations = torch.stack(orders) if times else torch.zeros(0, width).long()
        for matrices in (1, blocks):
            drawn = random_orthogonal((times + 1) * matrices, size, generator)
            rotations = drawn.view(times + 1, matrices, size, size)
            for name, x in activations(width):
                # Sums of up to 64 products and, in gradients of rotations, of up to 30 tokens, in
                # another order and up to three times in a row; bfloat16 has no kernel.
                largest = float(x.abs().max()) if x.numel() else 0
                error = 4 * SIZE * 2.0**-24 * largest * 8
                arguments = (x, rotations, permutations)
                label = f"{name}, {matrices} of {blocks} blocks of {size}, {times} permutations"
                yield Case(label, arguments, (0, 1), (error, 30 * error))


def fake_quantize_cases() -> Iterator[Case]:
    for name, x in activations(70):
        ratio = torch.full((*x.shape[:-1], 1), 0.75, dtype=x.dtype)
        for bits, symmetric, clips, learns in [
            (4, False, (ratio, ratio, 1.0, 1.0), (0, 1, 2)),
            (2, True, (ratio, None, 1.0, 0.6), (0, 1)),
            (8, False, (None, None, 0.9, 0.8), (0,)),
            (3, False, (ratio, ratio, 1.0, 1.0), (1, 2)),
        ]:
            for moves_zero in {False, not symmetric}:
                arguments = (x, *clips, bits, symmetric, moves_zero)
                # Up to 70 float32 terms as large as the largest entry, added in another order.
                error = 70 * 2e-7 * (1 + (float(x.abs().max()) if x.numel() else 0))
                yield Case(f"{name}, {bits} bits, {clips[2:]}", arguments, learns, (0, error))


def gradient_cases() -> Iterator[Case]:
    for name, x in activations(70):
        high, low = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)
        grid = affine_grid(x, 4, clip_high=0.7, clip_low=0.8)
        grad = x.flip(-1).transpose(0, -1).contiguous().transpose(0, -1)
        error = 70 * 2e-7 * float(x.square().max()) if x.numel() else 0
        for wants_input in (False, True):
            arguments = (x, grad, high, low, *grid, 4, wants_input)
            yield Case(f"{name}, {wants_input=}", arguments, error=(error, 0))


def token_cases() -> Iterator[Case]:
    for name, x in activations(33):
        for bits, symmetric in itertools.product((2, 4, 8), (False, True)):
            yield Case(f"{name}, {bits} bits", (x, bits, 0.9, None, symmetric))
        ends = torch.tensor([0.8, 0.65], dtype=x.dtype)
        yield Case(f"{name}, clipped by its ends", (x, 4, 1.0, ends, False))


def exact_products(width: int) -> Iterator[tuple[str, Tensor]]:
    """Activations whose sums with rotations of zeros and eighths are exact in any order."""
    for name, x in activations(width):
        scaled = (x * 4 / x.abs().max().clamp(min=1e-3) if x.numel() else x) * 8
        yield name, scaled.round()
    x = outlier_activation(150, width, seed=6).mul(4).round().clamp(-100, 100)
    yield "many tokens", x
    yield "many tokens of bfloat16", x.bfloat16()


def rotations_of_eighths(steps: int, matrices: int) -> Tensor:
    """Hadamard matrices of 64, each with other signs, ``(steps, matrices, 64, 64)``."""
    generator = torch.Generator().manual_seed(steps)
    signs = torch.randint(0, 2, (steps, matrices, 1, SIZE), generator=generator) * 2.0 - 1
    return hadamard_matrix(SIZE) * signs


def transformed_token_cases() -> Iterator[Case]:
    for blocks, times, own in [(3, 1, False), (2, 0, True), (2, 2, True)]:
        width = blocks * SIZE
        generator = torch.Generator().manual_seed(times)
        orders = [torch.randperm(width, generator=generator) for _ in range(times)]
        permutations = torch.stack(orders) if times else torch.zeros(0, width).long()
        rotations = rotations_of_eighths(times + 1, blocks if own else 1)
        mean = torch.arange(width) / 4.0 - 5
        ends = torch.tensor([0.8, 0.65])
        for name, x in exact_products(width):
            for bits, symmetric, each, clip in [
                *[(4, False, None, None), (4, True, mean, None)],
                *[(8, False, mean, ends), (2, False, None, ends)],
            ]:
                arguments = (x, each, rotations, permutations, bits, 0.9, clip, symmetric)
                yield Case(f"{name}, {bits} bits, {times} permutations, {symmetric=}", arguments)


def transformed_value_cases() -> Iterator[Case]:
    rotation = rotations_of_eighths(1, 1)[0, 0]
    for width, each in ((SIZE, rotation), (2 * SIZE, rotation), (70, None)):
        for name, x in exact_products(width):
            for bits, symmetric in ((4, False), (3, True), (8, False)):
                arguments = (x, each, bits, 0.9, symmetric)
                yield Case(f"{name}, {width} channels, {bits} bits, {symmetric=}", arguments)


def packed_cases() -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Activations with their zero points and packed weights."""
    sizes = [(5, 66, 19), (1, 130, 70), (0, 64, 3), (13, 64, 1), (50, 700, 37), (16, 1024, 32)]
    for rows, columns, out in [*sizes, (300, 132, 65), (3, 33, 4)]:
        generator = torch.Generator().manual_seed(rows)
        q = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
        w = torch.randint(0, 16, (out, columns), generator=generator, dtype=torch.uint8)
        zero = torch.randint(-20, 36, (rows, 1), generator=generator).float()
        for name, each in [("", q), (", strided", q.t().contiguous().t())]:
            yield f"{rows} × {columns} × {out}{name}", each, zero, pack(w, 4)
    wide = pack(w, 4).repeat(1, 2)[:, ::2]
    yield "strided weights", q[:, : 2 * wide.shape[1]][:, :32], zero, wide[:, :16]


def product_cases() -> Iterator[Case]:
    for name, q, _, packed in packed_cases():
        yield Case(name, (q, packed, 15))
        yield Case(f"{name}, bytes", (q * 17, packed, 255))


def linear_cases() -> Iterator[Case]:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for name, q, zero, packed in packed_cases():
        scale, zeros, sums, bias = outlier_activation(4, len(packed), seed=2)
        for has_bias, dtype, times in itertools.product((False, True), dtypes, (1, 17)):
            tokens = encode_tokens(q * times, AffineGrid(zero.abs() / 7 + 0.1, zero))
            rows = (scale, zeros.round(), sums.round(), bias if has_bias else None)
            label = f"{name}, {dtype}, {has_bias=}, integers to {15 * times}"
            yield Case(label, (tokens, packed, *rows, 15 * times, dtype))


def scaled_cases() -> Iterator[Case]:
    """More columns than the kernel takes at once; sums beyond what float32 counts."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for rows, columns, has_bias, dtype in itertools.product(
        (0, 1, 9), (5, 2049), (False, True), dtypes
    ):
        generator = torch.Generator().manual_seed(columns)
        zero = torch.arange(rows).view(rows, 1) * 3000 - 5
        q = torch.randint(0, 256, (rows, 37), generator=generator, dtype=torch.uint8)
        tokens = encode_tokens(q, AffineGrid(zero.abs() / 7e6 + 1e-5, zero))
        product = torch.randint(-(2**23), 2**23, (rows, columns), generator=generator).float()
        scale, zeros, sums, bias = outlier_activation(4, columns, seed=2)
        each = (scale, zeros.round(), (sums * 99).round(), bias if has_bias else None)
        label = f"{rows} tokens, {columns} columns, {dtype}, {has_bias=}"
        yield Case(label, (product, tokens, *each, dtype))
        yield Case(f"{label}, int32", (product.int(), tokens, *each, dtype))


def screen_cases() -> Iterator[Case]:
    for size, both in itertools.product((SIZE, 24, 8 * SIZE), (False, True)):
        generator = torch.Generator().manual_seed(size)
        x = outlier_activation(40, 3 * size, seed=size)
        rows = x.view(40, 3, size).transpose(0, 1)  # searches lie side by side
        rows = rows / rows.abs().amax(dim=(1, 2), keepdim=True)
        ranking = torch.linalg.vector_norm(rows, dim=2).argsort(dim=1, descending=True)[:, :30]
        matrices = random_orthogonal(3, size, generator)
        for name, each in [
            ("side by side", rows.transpose(0, 1).contiguous().transpose(0, 1)),
            ("channels apart", rows.mT.contiguous().mT),
            ("one search of zeros", rows * torch.tensor([1.0, 0, 1]).view(3, 1, 1)),
        ]:
            arguments = (each, ranking, matrices, both, [])
            yield Case(f"{name}, {size} channels, {both=}", arguments, look=ends_of_places)


def ends_of_places(arguments: list[Any], results: list[Tensor]) -> list[Tensor]:
    """What the screen promises: the largest and the smallest entry are among those it names."""
    rows, ranking, matrices, both, _ = arguments
    exact = rows.gather(1, ranking.unsqueeze(2).expand(-1, -1, rows.shape[2])).double()
    exact = exact @ matrices.double()
    search, place, channel = results[0].unbind(1)
    assert len(results[0]) < exact.numel() / 4
    named = exact.new_full(exact.shape, -torch.inf)
    ends = [exact, -exact] if both else [exact.abs()]
    for end in ends:
        named[search, place, channel] = end[search, place, channel]
        assert torch.equal(named.amax(dim=(1, 2)), end.amax(dim=(1, 2)))
    return [torch.stack([end.amax(dim=(1, 2)) for end in ends])]


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "transform_rows": transform_cases,
    "transformed_tokens": transformed_token_cases,
    "transformed_values": transformed_value_cases,
    "fake_quantize_rows": fake_quantize_cases,
    "quantize_rows_gradient": gradient_cases,
    "quantize_tokens": token_cases,
    "packed_product": product_cases,
    "packed_linear": linear_cases,
    "scaled_sums": scaled_cases,
    "screen_rows": screen_cases,
}
