"""Whether the device computes what the CPU does, part by part."""

import os
import platform
from itertools import product

import lightning
import torch
import transformers
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.formats.integer import Integer
from duquant.nn.activation import ActivationQuantizer
from duquant.nn.attention import duquant_attention
from duquant.nn.attention_quantizer import AttentionQuantizer
from duquant.nn.execution import Execution
from duquant.nn.packed_linear import PackedLinear
from duquant.ops.fake_quantize import fake_quantize_rows
from duquant.ops.integer_product import engine
from duquant.ops.kernels.table import KERNELS
from duquant.ops.repeatable_attention import can_repeat_flash, repeats_flash_on
from duquant.ops.rotation import find_rotation
from duquant.rounding.nearest import Nearest
from tests.benchmarks.gpu.bench import Bench, Figures, check, generator, not_applicable

SHAPES = (
    *((1, 64, 24, 1), (5, 96, 17, 1), (16, 130, 33, 1), (17, 130, 33, 1), (18, 1040, 8, 2)),
    *((3, 40, 7, 5), (33, 4096, 264, 1), (7, 11008, 40, 1)),
)
"""Tokens, inputs, outputs and groups per row of a linear."""


@check(60)
def environment(bench: Bench) -> Figures:
    """Versions, the device, and what it reaches at best."""
    figures: Figures = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "lightning": lightning.__version__,
        "cpus": os.cpu_count(),
        "kernels": {
            f"{row.operator._qualname}, {row.device}": row.is_available() for row in KERNELS
        },
    }
    if not bench.is_cuda:
        return figures
    device, known = bench.device, torch.cuda.get_device_properties(bench.device)
    figures |= {"name": known.name, "gib": round(known.total_memory / 2**30, 1)}
    figures |= {"capability": [known.major, known.minor], "cuda": torch.version.cuda}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = torch.randn(4096, 4096, device=device, dtype=dtype)
        taken = bench.median_ms(lambda x=x: x @ x)  # type: ignore[misc]
        figures[f"{str(dtype).removeprefix('torch.')}_tflops"] = round(2 * 4096**3 / taken / 1e9, 1)
    q = torch.ones(4096, 4096, device=device, dtype=torch.int8)
    taken = bench.median_ms(lambda: torch._int_mm(q, q.t()))
    figures["int8_tops"] = round(2 * 4096**3 / taken / 1e9)
    host = torch.empty(1 << 28, dtype=torch.uint8)
    there = torch.empty_like(host, device=device)
    for kind, source in (("pageable", host), ("pinned", host.pin_memory())):
        taken = bench.median_ms(lambda source=source: there.copy_(source))  # type: ignore[misc]
        figures[f"to_device_{kind}_gb_s"] = round((1 << 28) / taken / 1e6, 1)
    return figures


@check(60)
def packed_linears_all_bits(bench: Bench) -> Figures:
    """Integers of every width against float64, and the stored form comes back."""
    if engine(bench.device) is None:
        return not_applicable(f"no int8 engine on {bench.device}")
    worst, cases, wrong, drawn = 0.0, 0, [], generator(0)
    shapes = SHAPES[:6] if bench.small else SHAPES
    widths = product((2, 4, 8) if bench.small else range(2, 9), (3, 4, 8), shapes)
    for weight_bits, activation_bits, (tokens, columns, rows, groups) in widths:
        form = Integer(weight_bits, group_size=columns // groups if groups > 1 else None)
        codes, grid, *_ = Nearest()(torch.randn(rows, columns, generator=drawn), form)
        stored, bias = form.store(codes, grid), torch.randn(rows, generator=drawn)
        activations, x = Integer(activation_bits), torch.randn(tokens, columns, generator=drawn)
        quantizer = ActivationQuantizer(activations, 0.9)
        options = {"activations": activations, "in_features": columns, "dtype": torch.float32}
        weight = PackedLinear(stored, bias, form, **options).dequantized().double()
        given = quantizer(x).double()
        expected = given @ weight.T + bias.double()
        size = given.abs() @ weight.abs().T + bias.double().abs()
        for memory in ("fast", "packed"):
            linear = PackedLinear(stored, bias, form, **options).to(bench.device)
            linear.execution = Execution("integer", memory)  # type: ignore[arg-type]
            found = linear(quantizer.to(bench.device).encoded(x.to(bench.device))).cpu().double()
            error = float(((found - expected).abs() / size).max())
            worst, cases = max(worst, error), cases + 1
            # a token's rounding may turn on another device
            if not error <= (columns + 9) * 2**-24 + 1e-5:
                wrong.append([weight_bits, activation_bits, tokens, columns, rows, memory, error])
            if not torch.equal(linear.state_dict()["packed"].cpu(), stored["packed"]):
                wrong.append([weight_bits, memory, "the packed weight does not come back"])
            quantizer.to("cpu")
    return {"ok": not wrong, "cases": cases, "worst_relative": worst, "wrong": wrong[:5]}


@check(30)
def fake_quantization_and_gradient(bench: Bench) -> Figures:
    """The operator of LWC, forward and backward."""
    figures: Figures = {"ok": True}
    for symmetric in (False, True):
        x, direction = (torch.randn(300, 257, generator=generator(seed)) for seed in (0, 1))
        found = []
        for device in ("cpu", bench.device):
            leaf = x.clone().to(device).requires_grad_()
            high, low = (
                torch.full((300, 1), ratio, device=device, requires_grad=True)
                for ratio in (0.9, 0.8)
            )
            y = fake_quantize_rows(
                leaf, 4, symmetric=symmetric, clip_high=high, clip_low=low, zero_point_gradient=True
            )
            (y * direction.to(device)).sum().backward()
            found.append([each.detach().cpu() for each in (y, leaf.grad, high.grad, low.grad)])
        apart = [float((a - b).abs().max()) for a, b in zip(*found, strict=True)]
        figures["symmetric" if symmetric else "asymmetric"] = apart
        figures["ok"] &= apart[0] < 1e-2
    return figures


@check(30)
def attention_and_cache_codes(bench: Bench) -> Figures:
    """Q, K and V, and K and V out of a packed cache's bytes."""
    figures: Figures = {"ok": True}
    for bits, width in product((2, 4, 8), (64, 80, 128)):
        formats = Recipe(activation_bits=bits).formats
        options = {"clip_ratio": 0.9, "block_size": 128}
        here = AttentionQuantizer(width, formats, **options)  # type: ignore[arg-type]
        there = AttentionQuantizer(width, formats, **options).to(bench.device)  # type: ignore[arg-type]
        heads = [torch.randn(2, 3, 40, width, generator=generator(seed)) for seed in range(3)]
        moved = [each.to(bench.device) for each in heads]
        expected, found = here(*heads), there(*moved)
        pairs = zip(expected, found, strict=True)
        share = max(float((a - b.cpu()).abs().gt(1e-5).float().mean()) for a, b in pairs)
        again = there(moved[0], *there.encode(*moved[1:]))
        is_equal = all(torch.equal(a, b) for a, b in zip(again, found, strict=True))
        figures[f"{bits} bits, {width}"] = {"share_differing": share, "cache_equal": is_equal}
        figures["ok"] &= is_equal and share < 1e-2
    return figures


@check(60)
def attention_of_training(bench: Bench) -> Figures:
    """As a block trains: close to float64, the same bits twice, and whether by FlashAttention.

    Windows are long enough for many of its blocks to add to one gradient.
    """
    figures: Figures = {"ok": True}
    heads, groups, tokens = (4, 2, 40) if bench.small else (16, 4, 2048)
    for dtype, width in product((torch.bfloat16, torch.float16), (80, 128)):
        shapes = ((2, each, tokens, width) for each in (heads, groups, groups, heads))
        drawn = [torch.randn(shape, generator=generator(i)) for i, shape in enumerate(shapes)]
        *given, direction = (each.to(bench.device, dtype) for each in drawn)
        found, again = (_trained_attention(given, direction) for _ in range(2))
        wide = _trained_attention([each.double() for each in given], direction.double())
        apart = max(
            float((mine.double() - theirs).norm() / theirs.norm())
            for mine, theirs in zip(found, wide, strict=True)
        )
        is_repeated = all(torch.equal(*pair) for pair in zip(found, again, strict=True))
        by_flash = can_repeat_flash(*given, None, 0.0)
        is_foreseen = repeats_flash_on(bench.device, dtype, width) == by_flash
        name = f"{str(dtype).removeprefix('torch.')}, heads of {width}"
        figures[name] = {"apart": apart, "repeated": is_repeated, "flash": by_flash}
        figures["ok"] &= apart < 2e-2 and is_repeated and is_foreseen
    return figures


def _trained_attention(given: list[Tensor], direction: Tensor) -> list[Tensor]:
    """Output and gradients."""
    module = nn.Module()
    module.num_key_value_groups = given[0].shape[1] // given[1].shape[1]  # type: ignore[assignment]
    operands = [each.detach().requires_grad_() for each in given]
    output, _ = duquant_attention(module, *operands, None, scaling=given[0].shape[-1] ** -0.5)
    return [output.detach(), *torch.autograd.grad(output, operands, direction.transpose(1, 2))]


@check(60)
def searches_on_cpu_and_device(bench: Bench) -> Figures:
    """Every kind of rotation search finds the same, or something as good."""
    figures: Figures = {"ok": True}
    x = torch.randn(256, 512, generator=generator(1)) * 0.05
    x[:, [3, 200, 401]] *= 40
    x[[5, 77]] *= 20
    kinds = product(("outlier", "authors"), ("shared", "per_block"), (64, 128))
    for selector, scope, size in kinds:
        here, there = (
            find_rotation(
                x.to(device), block_size=size, max_steps=8 if bench.small else 64,
                selector=selector, scope=scope, generator=generator(2),  # type: ignore[arg-type]
            ).cpu()
            for device in ("cpu", bench.device)
        )  # fmt: skip
        blocks = x.view(256, -1, size).transpose(0, 1)
        peaks = [float((blocks @ each).abs().max()) for each in (here, there)]
        slant = float((there @ there.mT - torch.eye(size)).abs().max())
        figures[f"{selector} {scope} {size}"] = {
            "apart": float((here - there).abs().max()), "peaks": peaks, "slant": slant,
        }  # fmt: skip
        figures["ok"] &= abs(peaks[0] - peaks[1]) < 1e-3 * peaks[0] and slant < 1e-4
    return figures
