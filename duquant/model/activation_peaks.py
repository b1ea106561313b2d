"""The largest magnitude of activations, for number formats whose grids depend on it.

NVFP4 divides the scale of every group by one scale of the whole tensor. A serving engine sees a few
tokens at a time, so that one is calibrated: the peak of what each quantizer receives while the
block runs over its calibration samples.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from duquant.model.surgery import QuantizedBlock
from duquant.nn.activation import ActivationQuantizer
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
    quantizers = [
        module
        for module in quantized.layer.modules()
        if isinstance(module, ActivationQuantizer) and module.form.needs_peak
    ]
    if not quantizers:
        return
    peaks = {quantizer: torch.zeros(1, device="cpu") for quantizer in quantizers}

    def watch(quantizer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(quantizer, ActivationQuantizer)
        peak = inputs[0].abs().amax().float().cpu()
        peaks[quantizer] = torch.maximum(peaks[quantizer], peak.view(1))

    handles = [quantizer.register_forward_pre_hook(watch) for quantizer in quantizers]
    try:
        for chunk in samples():
            forward(chunk)
    finally:
        for handle in handles:
            handle.remove()
    device = next(quantized.layer.parameters()).device
    for quantizer, peak in peaks.items():
        quantizer.hold_peak(processes.max(peak).to(device))
