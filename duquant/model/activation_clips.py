"""How far to shrink every token's range: the clip ratio that costs a site's outputs least.

A token of a transformed site looks like a normal distribution: its largest entries are few, and a
range without them has finer steps for all others. How much to leave out depends on the number of
channels, and is measured: on some tokens of the calibration every site tries a ladder of ratios and
keeps the one with the smallest error of what its linears make of it,

    mean over tokens of ‖(Q(x) - x) Wᵀ‖² / ‖x Wᵀ‖²,

so that massive tokens count as much as others. Q, K and V, which no weight reads, are compared
themselves, head by head. Where clip factors of activations are learned, they begin there.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

import torch
from torch import Tensor

from duquant.formats.number_format import Clip, split_rows
from duquant.model.structure import SITES
from duquant.model.surgery import QuantizedBlock, activation_quantizers
from duquant.model.watched_inputs import watching
from duquant.nn.activation import ActivationQuantizer
from duquant.processes import ALONE, Processes

RATIOS = [1 - 0.04 * step for step in range(12)]
TOKENS = 512
"""Tokens of every process that a site looks at; of Q, K and V eight times as many heads."""
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
        samples: gives its inputs ``(batch, tokens, hidden)``, on its device; the first batch is
            used.
        processes: who has the other samples.
    """
    quantizers = {
        name: quantizer
        for name, quantizer in activation_quantizers(quantized).items()
        if quantizer.is_quantized and quantizer.form.learns_clip_factors
    }
    errors: dict[str, Tensor] = {}
    metrics = _metrics(quantized)

    def look(name: str, inputs: tuple[Tensor, ...]) -> None:
        errors[name] = _errors(quantizers[name], inputs[0], metrics.get(name))

    with watching(quantizers, look):
        for chunk in islice(samples(), 1):
            forward(chunk)
    device = next(quantized.layer.parameters()).device
    for name, quantizer in quantizers.items():
        local = errors.get(name, torch.zeros(len(RATIOS), dtype=torch.float64, device="cpu"))
        ratio = RATIOS[int(processes.sum(local).argmin())]
        quantizer.hold_clip_ends(torch.full((2,), ratio, dtype=torch.float32, device=device))


def _metrics(quantized: QuantizedBlock) -> Mapping[str, Tensor]:
    """``Σ WᵀW`` over a site's linears, ``(width, width)``: what an error of its tokens costs."""
    metrics = {}
    for site in SITES:
        weights = [quantized.linears[name].transformed_weight().detach() for name in site.linears]
        stacked = torch.cat(weights)
        metrics[site.name] = stacked.t() @ stacked
    return metrics


def _errors(quantizer: ActivationQuantizer, x: Tensor, metric: Tensor | None) -> Tensor:
    """Error by ratio, float64 on the CPU, of some of the tokens; no metric means the identity."""
    rows = x.detach().flatten(0, -2)
    limit = TOKENS if metric is not None else 8 * TOKENS
    rows = rows[:: -(-len(rows) // limit)].float()
    squares = _squares(rows, metric).clamp(min=SMALLEST_SQUARE)
    form, errors = quantizer.form, []
    split = split_rows(rows, form.group_size)
    for ratio in RATIOS:
        values = form.fake_quantize(split, Clip(ratio, ratio)).reshape(rows.shape)
        errors.append((_squares(values - rows, metric) / squares).double().mean())
    return torch.stack(errors).cpu()


def _squares(rows: Tensor, metric: Tensor | None) -> Tensor:
    """``x M xᵀ`` of every row."""
    return ((rows if metric is None else rows @ metric) * rows).sum(dim=-1)
