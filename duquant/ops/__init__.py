"""Pure functions: the mathematics of DuQuant, without state and without modules.

Every function takes tensors and plain numbers and returns tensors. Nothing here knows what a
Hugging Face model, a Trainer or a file is, so each formula can be read, tested and reused alone.
"""

from duquant.ops.kernels import table  # noqa: F401, importing it registers the kernels
