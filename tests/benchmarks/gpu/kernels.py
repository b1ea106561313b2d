"""Every kernel of ours for the device beside its operator's definition: numbers and times of both.

On CUDA these are the Triton kernels; a rehearsal on the CPU looks at those in C. A device for which
there are none runs the definitions; they are compared with those on the CPU, and the line says so.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from duquant.ops.affine import AffineGrid, dequantize
from duquant.ops.dual_transform import transform_rows
from duquant.ops.fake_quantize import quantize_rows
from duquant.ops.kernels.table import KERNELS
from duquant.ops.packed_product import packed_linear
from duquant.ops.quantized_tokens import decode_tokens, encode_tokens, quantized_tokens
from duquant.ops.rotation import random_orthogonal
from duquant.ops.rows_gradient import rows_gradient
from duquant.ops.scaled_sums import scaled_sums
from duquant.ops.transformed_tokens import transformed_tokens, transformed_values
from duquant.ops.triton_kernels.presence import LEAST_CAPABILITY
from tests.benchmarks.gpu.bench import Bench, Figures, check, generator, not_applicable

FEW = 1e-4
"""Share of entries that may be far apart: a value between two codes falls to either."""
A_STEP = 0.14
"""Two neighbours of 16 levels, as a share of the largest: one token has too few entries for
``FEW``. ``tests/ops/test_kernel_table.py`` compares exact sums, bit by bit."""
Look = Callable[[Any], list[Tensor]]


def compared(
    bench: Bench, operator: Any, arguments: tuple[Any, ...], near: float, look: Look = list
) -> Figures:
    """One operator by its kernel and by its definition, both on the device.

    Args:
        bench: where.
        operator: what is computed.
        arguments: of it.
        near: largest difference that is none, as a share of the largest entry.
        look: what of the results is compared.
    """
    if bench.device.type not in {row.device for row in KERNELS}:
        return _definitions(bench, operator, arguments, near, look)
    kernel = next(
        row for row in KERNELS if row.operator is operator and row.device == bench.device.type
    )
    if not kernel.is_available():
        is_due = (
            bench.is_cuda and torch.cuda.get_device_capability(bench.device) >= LEAST_CAPABILITY
        )
        return {"ok": not is_due, **not_applicable("no kernel here, see the message")}
    with operator.set_kernel_enabled(kernel.device, enabled=False):
        expected = look(operator(*arguments))
        slow = bench.mean_ms(lambda: operator(*arguments), 5)
    found = look(operator(*arguments))
    fast = bench.mean_ms(lambda: kernel.function(*arguments))
    return {**_apart(found, expected, near), "kernel_ms": fast, "torch_ms": slow}


def _definitions(
    bench: Bench, operator: Any, arguments: tuple[Any, ...], near: float, look: Look
) -> Figures:
    """An operator's definition on the device and on the CPU."""
    there = look(operator(*arguments))
    with operator.set_kernel_enabled("cpu", enabled=False):
        host = (each.cpu() if isinstance(each, Tensor) else each for each in arguments)
        expected = look(operator(*host))
    why = f"no kernels for {bench.device.type}, definitions were compared"
    return {**_apart([each.cpu() for each in there], expected, near), **not_applicable(why)}


def _apart(found: list[Tensor], expected: list[Tensor], near: float) -> Figures:
    """Shares of entries that differ by more than ``near``."""
    shares = []
    for one, other in zip(found, expected, strict=True):
        apart = (one.double() - other.double()).abs() / other.double().abs().max().clamp(min=1e-30)
        shares.append(float((~(apart <= near)).double().mean()))
    return {"ok": max(shares) <= FEW, "share_apart": shares}


def summed(rows: dict[str, Figures]) -> Figures:
    """Lines of several sizes as one check, which names what one of them lacks."""
    figures = {"ok": all(row["ok"] for row in rows.values()), **rows}
    reasons = [row["not_applicable"] for row in rows.values() if "not_applicable" in row]
    return {**figures, **not_applicable(reasons[0])} if reasons else figures


def drawn(bench: Bench, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers with a few large channels, on the device."""
    x = torch.randn(shape, generator=generator(shape[0]))
    x[..., :: max(2, shape[-1] // 6)] *= 20
    return x.to(bench.device, dtype)


@check(120)
@torch.no_grad()
def packed_linear_kernel(bench: Bench) -> Figures:
    """Linears of packed weights, for few and for many tokens."""
    rows = {}
    sizes = ((96, 130),) if bench.small else ((4096, 4096), (4096, 11008), (11008, 4096))
    for out, columns in sizes:
        counts = (1, 16, 20) if bench.small else (1, 16, 64, 2048)
        for largest, tokens in itertools.product((15, 255), counts):
            shape, times = (out, columns // 2), largest // 15
            packed = torch.randint(0, 256, shape, generator=generator(1), dtype=torch.uint8)
            q = torch.randint(0, 16, (tokens, columns), generator=generator(2), dtype=torch.uint8)
            q *= times
            grid = AffineGrid(torch.full((tokens, 1), 0.1), torch.full((tokens, 1), 7.0))
            scale, zero, sums, bias = drawn(bench, 4, out)
            tensors = (each.to(bench.device) for each in (encode_tokens(q, grid), packed))
            arguments = (*tensors, scale, zero.round(), sums.round(), bias)
            name = f"{tokens} × {columns} × {out}, integers to {largest}"
            arguments = (*arguments, largest, torch.float32)
            rows[name] = compared(bench, packed_linear, arguments, 1e-6, lambda y: [y])
    return summed(rows)


@check(60)
@torch.no_grad()
def scaled_sums_kernel(bench: Bench) -> Figures:
    """What comes after PyTorch's integer products, for few and for many tokens."""
    rows = {}
    sizes = ((1030, 131),) if bench.small else ((4096, 4096), (11008, 4096))
    for out, columns in sizes:
        for tokens in (1, 20) if bench.small else (1, 16, 256, 2048):
            product = torch.randint(-(2**23), 2**23, (tokens, out), generator=generator(1)).int()
            q = torch.randint(0, 256, (tokens, columns), generator=generator(2), dtype=torch.uint8)
            grid = AffineGrid(torch.full((tokens, 1), 0.1), torch.full((tokens, 1), 7.0))
            scale, zero, sums, bias = drawn(bench, 4, out)
            tensors = (each.to(bench.device) for each in (product, encode_tokens(q, grid)))
            arguments = (*tensors, scale, zero.round(), sums.round(), bias, torch.float32)
            name = f"{tokens} × {columns} × {out}"
            rows[name] = compared(bench, scaled_sums, arguments, 1e-6, lambda y: [y])
    return summed(rows)


@check(60)
@torch.no_grad()
def fake_quantization_kernels(bench: Bench) -> Figures:
    """Weight rows, whole and in groups of 128, and what their clip factors learn from."""
    rows = {}
    shapes = ((40, 130),) if bench.small else ((4096, 4096), (4096, 11008), (131072, 128))
    for shape in shapes:
        x, clip = drawn(bench, *shape), torch.full((shape[0], 1), 0.9, device=bench.device)
        arguments = (x, clip, clip, 1.0, 1.0, 4, False, False)
        rows[f"values {shape}"] = compared(bench, quantize_rows, arguments, 1e-5)
        ends = quantize_rows(*arguments)[1:]
        for wants_input in (False, True):
            given = (x, x.flip(0), *ends, 4, wants_input)
            name = f"gradient {shape}, {wants_input=}"
            rows[name] = compared(
                bench, rows_gradient, given, 1e-4, lambda y: [each for each in y[:3] if len(each)]
            )
    return summed(rows)


@check(60)
@torch.no_grad()
def site_kernels(bench: Bench) -> Figures:
    """The transform of a site, the quantization of its tokens, both at once, and of heads."""
    rows = {}
    width, size = (192, 64) if bench.small else (4096, 128)
    rotations = random_orthogonal(2 * (width // size), size, generator(3))
    made = rotations.view(2, -1, size, size), torch.randperm(width, generator=generator(4))
    moved = [made[0].to(bench.device), made[1].view(1, width).to(bench.device)]
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 2.0**-6)):
        for tokens in (1, 20) if bench.small else (1, 16, 2048):
            x, name = drawn(bench, tokens, width, dtype=dtype), f"{tokens} tokens, {dtype}"
            arguments = (x, *moved)
            rows[f"transform, {name}"] = compared(
                bench, transform_rows, arguments, near, lambda y: [y]
            )
            given = (x, 4, 0.9, None, False)
            rows[f"quantization, {name}"] = compared(bench, quantized_tokens, given, 1e-5, decoded)
            both = (x, x[0].float(), *moved, *given[1:])
            rows[f"both at once, {name}"] = compared(
                bench, transformed_tokens, both, A_STEP, decoded
            )
            heads = x.view(-1, size), moved[0][0, 0], 4, 0.9, False
            rows[f"heads, {name}"] = compared(
                bench, transformed_values, heads, A_STEP, lambda y: [y]
            )
    return summed(rows)


def decoded(tokens: Tensor) -> list[Tensor]:
    """What encoded tokens stand for."""
    q, grid = decode_tokens(tokens)
    return [dequantize(q.float(), grid)]
