"""How far to shrink every token's range: the clip ratio that costs a site's outputs least.

A token of a transformed site looks like a normal distribution: its largest entries are few, and a
range without them has finer steps for all others. How much to leave out depends on the number of
channels, and is measured: on some tokens of the first calibration samples every site tries a
ladder of ratios and keeps the one with the smallest error of what its linears make of it,

    mean over tokens of ‖(Q(x) - x) Wᵀ‖² / ‖x Wᵀ‖²,

so that massive tokens count as much as others. Q, K and V, which no weight reads, are compared
themselves, head by head. Where clip factors of activations are learned, they begin there.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor

from duquant.formats.number_format import Clip, split_rows
from duquant.model.structure import SITES
from duquant.model.surgery import QuantizedBlock, activation_quantizers
from duquant.model.watched_inputs import watching
from duquant.nn.activation import ActivationQuantizer
from duquant.nn.linear import QuantLinear
from duquant.processes import ALONE, Processes

Squares = Callable[[Tensor], Tensor]
"""What every row of ``(tokens, width)`` costs, ``(tokens,)``."""

RATIOS = [1 - 0.04 * step for step in range(12)]
TOKENS = 512
"""Tokens of every process that a site looks at, at most: spread evenly over the first 1,024 (over
the first sample, if that is longer). Of Q, K and V eight times as many rows, one for each head."""
SMALLEST_SQUARE = 1e-12


@torch.no_grad()
def search_activation_clips(
    quantized: QuantizedBlock,
    forward: Callable[[Tensor], Tensor],
    samples: Callable[[], Iterable[Tensor]],
    processes: Processes = ALONE,
) -> None:
    """Give every quantizer of activations the ratio that costs least, in place.

    Args:
        quantized: block whose transforms are installed.
        forward: runs the block.
        samples: gives its inputs ``(batch, tokens, hidden)``, on its device; the first few are
            used.
        processes: who has the other samples.
    """
    quantizers = {
        name: quantizer
        for name, quantizer in activation_quantizers(quantized).items()
        if quantizer.is_quantized and quantizer.form.learns_clip_factors
    }
    errors: dict[str, Tensor] = {}
    linears = {site.name: [quantized.linears[name] for name in site.linears] for site in SITES}

    def look(name: str, inputs: tuple[Tensor, ...]) -> None:
        is_read = name in linears
        squares = _squares_behind(linears[name]) if is_read else _squares
        limit = TOKENS if is_read else 8 * TOKENS
        errors[name] = _errors(quantizers[name], inputs[0], squares, limit)

    with watching(quantizers, look):
        for chunk in islice(samples(), 1):
            forward(chunk[: -(-2 * TOKENS // chunk.shape[1])])
    device = next(quantized.layer.parameters()).device
    for name, quantizer in quantizers.items():
        local = errors.get(name, torch.zeros(len(RATIOS), dtype=torch.float64, device="cpu"))
        ratio = RATIOS[int(processes.sum(local).argmin())]
        quantizer.hold_clip_ends(torch.full((2,), ratio, dtype=torch.float32, device=device))


def _errors(quantizer: ActivationQuantizer, x: Tensor, squares: Squares, limit: int) -> Tensor:
    """Error by ratio, float64 on the CPU, of at most ``limit`` of the tokens."""
    rows = x.detach().flatten(0, -2)
    rows = rows[:: -(-len(rows) // limit)].float()
    whole = squares(rows).clamp(min=SMALLEST_SQUARE)
    form, errors = quantizer.form, []
    split = split_rows(rows, form.group_size)
    for ratio in RATIOS:
        values = form.fake_quantize(split, Clip(ratio, ratio)).reshape(rows.shape)
        errors.append((squares(values - rows) / whole).double().mean())
    return torch.stack(errors).cpu()


def _squares(rows: Tensor) -> Tensor:
    """``x xᵀ`` of every row."""
    return rows.square().sum(dim=-1)


def _squares_behind(linears: Sequence[QuantLinear]) -> Squares:
    """Gives ``‖x Wᵀ‖²`` of every row, ``W`` all weights of the linears, by the smaller product."""
    weights = torch.cat([linear.transformed_weight().detach() for linear in linears])
    if len(weights) <= weights.shape[1]:
        return lambda rows: _squares(rows @ weights.t())
    metric = weights.t() @ weights
    return lambda rows: ((rows @ metric) * rows).sum(dim=-1)
