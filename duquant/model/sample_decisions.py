"""What is decided on a block's calibration samples before it is trained, in this order."""

from collections.abc import Callable

from torch import Tensor

from duquant.config import Recipe
from duquant.model.activation_clips import search_activation_clips
from duquant.model.activation_peaks import calibrate_peaks
from duquant.model.surgery import QuantizedBlock
from duquant.model.weight_decisions import Chunks
from duquant.processes import ALONE, Processes


def calibrate_on_samples(
    quantized: QuantizedBlock,
    recipe: Recipe,
    forward: Callable[[Tensor], Tensor],
    samples: Chunks,
    processes: Processes = ALONE,
) -> None:
    """Peaks and clip ratios of activations, as the recipe wants them, in place.

    Args:
        quantized: block whose transforms are installed.
        recipe: says what is decided.
        forward: runs the block.
        samples: gives its inputs ``(batch, tokens, hidden)``, on its device.
        processes: who has the other samples.
    """
    calibrate_peaks(quantized, forward, samples, processes)
    if recipe.clipping.activations == "search":
        search_activation_clips(quantized, forward, samples, processes)
