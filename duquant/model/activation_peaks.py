"""The largest magnitude of activations, for number formats whose grids depend on it.

NVFP4 divides the scale of every group by one scale of the whole tensor. A serving engine sees a few
tokens at a time, so that one is calibrated: the peak of what each quantizer receives while the
block runs over its calibration samples.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from duquant.model.surgery import QuantizedBlock, activation_quantizers
from duquant.model.watched_inputs import watching
from duquant.processes import ALONE, Processes


@torch.no_grad()
def calibrate_peaks(
    quantized: QuantizedBlock,
    forward: Callable[[Tensor], Tensor],
    samples: Callable[[], Iterable[Tensor]],
    processes: Processes = ALONE,
) -> None:
    """Give every quantizer that needs one its peak, in place.

    Args:
        quantized: block whose transforms are installed.
        forward: runs the block.
        samples: gives its inputs ``(batch, tokens, hidden)``, on its device.
        processes: who has the other samples.
    """
    quantizers = {
        name: quantizer
        for name, quantizer in activation_quantizers(quantized).items()
        if quantizer.form.needs_peak
    }
    if not quantizers:
        return
    peaks = {name: torch.zeros(1, dtype=torch.float32, device="cpu") for name in quantizers}

    def look(name: str, inputs: tuple[Tensor, ...]) -> None:
        peak = inputs[0].abs().amax().float().cpu()
        peaks[name] = torch.maximum(peaks[name], peak.view(1))

    with watching(quantizers, look):
        for chunk in samples():
            forward(chunk)
    device = next(quantized.layer.parameters()).device
    for name, quantizer in quantizers.items():
        quantizer.hold_peak(processes.max(peaks[name]).to(device))
