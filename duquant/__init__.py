"""DuQuant: 4-bit weights and activations for large language models, calibrated block by block.

A quantized linear computes ``(x R₁ P R₂) · (W R₁ P R₂)ᵀ`` with both factors in 4 bits: rotations
and permutations spread the outliers that would otherwise take all of the 16 levels. The maths lives
in :mod:`duquant.ops`, the modules that run it in :mod:`duquant.nn`, what must be known of a Hugging
Face decoder in :mod:`duquant.model`.

Importing the package is all that ``AutoModelForCausalLM.from_pretrained`` needs to load a quantized
model directory.
"""

from typing import Any

from duquant.config import Recipe
from duquant.export.hugging_face import register, set_execution
from duquant.extras import require_extra
from duquant.nn.packed_cache import PackedCache

__all__ = ["PackedCache", "Recipe", "quantize", "set_execution"]  # register_lora needs PEFT
__version__ = "0.1.0"

register()


def __getattr__(name: str) -> Any:
    """Import what is asked for: who only runs a model needs no trainer and no PEFT."""
    if name == "quantize":
        require_extra("calibrate", "duquant.quantize")
        from duquant.quantization import quantize

        return quantize
    if name == "register_lora":
        from duquant.model.lora import register_lora

        return register_lora
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
