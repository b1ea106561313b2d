"""DuQuant: 4-bit weights and activations for large language models, calibrated block by block.

A quantized linear computes ``(x R₁ P R₂) · (W R₁ P R₂)ᵀ`` with both factors in 4 bits: rotations
and permutations spread the outliers that would otherwise take all of the 16 levels. The maths lives
in :mod:`duquant.ops`, the modules that run it in :mod:`duquant.nn`, what must be known of a Hugging
Face decoder in :mod:`duquant.model`.
"""

__version__ = "0.1.0"
