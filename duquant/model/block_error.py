"""How much of a block's work its quantization loses, and what loses it.

A block adds ``F(x) - x`` to a token. Quantized it computes ``Q(x)`` instead, and

    error = mean over tokens of ‖Q(x) - F(x)‖ / ‖F(x) - x‖

over a few calibration samples, with ``x`` from the full-precision stream: what this block loses,
whatever the blocks before it lost. Every token counts the same; norms over all tokens would be
those of the few massive ones (in Qwen2.5-1.5B's block 2 they hide an error of 27 % behind 2 %).
A model can collapse by one block while every step of its
calibration succeeds, so a block above :data:`TOLERABLE` is looked into: it runs again with one
quantization after the other switched off, and the one whose absence helps most is named.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from duquant.config import Recipe
from duquant.formats.number_format import NumberFormat
from duquant.formats.unquantized import Unquantized
from duquant.model.structure import ATTENTION, SITES
from duquant.model.surgery import QuantizedBlock
from duquant.nn.activation import ActivationQuantizer
from duquant.nn.attention_quantizer import AttentionQuantizer
from duquant.nn.linear import QuantLinear
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.processes import ALONE, Processes

PROBED_TOKENS = 2048
"""Of all processes together; at least one sample."""
GLIMPSED_TOKENS = 512
"""Likewise, where the block is measured again once its weights are rounded."""
TOLERABLE = 0.5
"""Largest error that is not reported."""
DECISIVE = 0.5
"""A part is to blame if without its quantization the error shrinks to at most this share."""
WIDER_BITS = 8
MORE_BITS = "more bits or smaller groups help"
OPERANDS = "attention_operands"
"""Where Q, K and V are quantized, which is at no site."""


class Probe(NamedTuple):
    """A process's part of the probed samples, ``(samples, tokens, hidden)``, maybe none.

    Attributes:
        inputs: of the full-precision block.
        targets: its outputs.
    """

    inputs: Tensor
    targets: Tensor


class Part(NamedTuple):
    """Something that is quantized, and can be switched off.

    Attributes:
        name: in words.
        place: its site, or :data:`OPERANDS`.
        remedy: the option that gives it more bits.
        quantizers: what to switch off.
    """

    name: str
    place: str
    remedy: str
    quantizers: Sequence[ActivationQuantizer | QuantLinear]


@dataclass(frozen=True)
class BlockError:
    """What quantization costs a block.

    Attributes:
        relative: the error; ``None`` if an output is not finite.
        complaint: what loses it and the remedy, in words; empty if the error is tolerable.
    """

    relative: float | None
    complaint: str = ""


def num_probed(tokens: int, processes: Processes = ALONE, limit: int = PROBED_TOKENS) -> int:
    """Samples of ``tokens`` that this process probes, of ``limit`` tokens of all processes."""
    count = max(1, limit // tokens)
    return len(range(processes.rank, count, processes.count))


@torch.no_grad()
def measure_block(
    quantized: QuantizedBlock,
    forward: Callable[[Tensor], Tensor],
    probe: Probe,
    recipe: Recipe,
    processes: Processes = ALONE,
) -> BlockError:
    """Compare a block that is quantized but not frozen with what it was.

    Args:
        quantized: the block.
        forward: runs it.
        probe: samples on its device.
        recipe: its bits.
        processes: who has the other samples; all get the same answer.
    """
    error = relative_error(forward, probe, processes)
    if error is not None and error <= TOLERABLE:
        return BlockError(error)
    return BlockError(error, _complain(quantized, forward, probe, recipe, processes, error))


def in_the_end(before: BlockError, relative: float | None) -> BlockError:
    """What is said of a block whose weights were measured once more when they were rounded.

    Args:
        before: measured at the codes nearest to the weights, while parts could be switched off.
        relative: the error at the codes that were chosen.
    """
    if relative is not None and relative <= TOLERABLE:
        return BlockError(relative)
    return BlockError(relative, before.complaint or f"{_loss(relative)}: {MORE_BITS}")


@torch.no_grad()
def measure_sites(
    quantized: QuantizedBlock,
    forward: Callable[[Tensor], Tensor],
    probe: Probe,
    recipe: Recipe,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """The block's error if one site alone is quantized: its activation and the weights behind it.

    Args:
        quantized: block whose weights are not rounded yet; they are taken as rounded to nearest.
        forward: runs it.
        probe: samples on its device.
        recipe: its bits.
        processes: who has the other samples; all get the same answer.

    Returns:
        Errors by site and for :data:`OPERANDS` (Q, K and V together), in the order of a block;
        what is not quantized, or not finite, is left out.
    """
    parts, errors = _parts(quantized, recipe), {}
    for place in (SITES[0].name, OPERANDS, *(site.name for site in SITES[1:])):
        if not any(part.place == place for part in parts):
            continue
        with ExitStack() as stack:
            for part in parts:
                if part.place != place:
                    stack.enter_context(_switched_off(part))
            error = relative_error(forward, probe, processes)
        if error is not None:
            errors[place] = error
    return errors


def relative_error(
    forward: Callable[[Tensor], Tensor], probe: Probe, processes: Processes
) -> float | None:
    """The error alone; ``None`` if an output is not finite."""
    sums = torch.zeros(2, dtype=torch.float64, device="cpu")
    if len(probe.inputs):
        lost = (forward(probe.inputs).float() - probe.targets.float()).norm(dim=-1)
        added = (probe.targets.float() - probe.inputs.float()).norm(dim=-1)
        shares = (lost / added)[added > 0].cpu().double()
        sums = torch.stack([shares.sum(), shares.new_tensor(shares.numel())])
    total, count = processes.sum(sums).tolist()
    error = total / max(1.0, count)
    return error if math.isfinite(error) else None


def _complain(
    quantized: QuantizedBlock,
    forward: Callable[[Tensor], Tensor],
    probe: Probe,
    recipe: Recipe,
    processes: Processes,
    error: float | None,
) -> str:
    finite: list[tuple[float, Part]] = []
    for part in _parts(quantized, recipe):
        with _switched_off(part):
            rest = relative_error(forward, probe, processes)
        if rest is not None:
            finite.append((rest, part))
    loss = _loss(error)
    rest, best = min(finite, key=lambda pair: pair[0], default=(math.inf, None))
    if best is None or (error is not None and rest > DECISIVE * error):
        return f"{loss}; no single site or operand is to blame: {MORE_BITS}"
    return f"{loss}; {best.name} is to blame ({rest:.0%} without it): {best.remedy}"


def _loss(error: float | None) -> str:
    if error is None:
        return "its output is not finite"
    return f"quantization changes its output by {error:.0%} of what the block adds to its input"


def _parts(quantized: QuantizedBlock, recipe: Recipe) -> list[Part]:
    attention = quantized.layer.get_submodule(ATTENTION).attention_quantizer
    assert isinstance(attention, AttentionQuantizer)
    parts = [
        Part("quantizing Q", OPERANDS, "--model.query_bits 16", [attention.query]),
        Part("quantizing K", OPERANDS, "--model.key_bits 16", [attention.key]),
        Part("quantizing V", OPERANDS, "--model.value_bits 16", [attention.value]),
    ]
    for site in SITES:
        name, bits = site.name.replace("_", " "), _wider(recipe.formats.activations)
        quantizer = quantized.sites[site.name].quantizer
        remedy = f"--model.activation_bits {bits}"
        parts.append(Part(f"quantizing the {name}", site.name, remedy, [quantizer]))
    for site in SITES:
        names = ", ".join(linear.rpartition(".")[2] for linear in site.linears)
        linears = [quantized.linears[linear] for linear in site.linears]
        remedy = f"--model.weight_bits {_wider(recipe.formats.weights)}"
        parts.append(Part(f"quantizing the weights of {names}", site.name, remedy, linears))
    return [part for part in parts if part.quantizers[0].is_quantized]


def _wider(form: NumberFormat) -> int:
    return WIDER_BITS if form.bits < WIDER_BITS else UNQUANTIZED_BITS


@contextmanager
def _switched_off(part: Part) -> Iterator[None]:
    forms = [quantizer.form for quantizer in part.quantizers]
    for quantizer in part.quantizers:
        quantizer.form = Unquantized()
    try:
        yield
    finally:
        for quantizer, before in zip(part.quantizers, forms, strict=True):
            quantizer.form = before
