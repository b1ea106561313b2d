"""Which precision transforms are computed in.

Rotations are products with orthogonal matrices, in front of a rounding to 16 levels. On
accelerators they run in the model's dtype, whose products are accumulated in float32. Processors
multiply half precision more slowly than float32, many without hardware for it, so there they run in
float32.
"""

import torch
from torch import Tensor


def widen_on_cpu(x: Tensor) -> Tensor:
    """``x`` as float32 if it is half precision on the CPU; else ``x`` itself."""
    if x.device.type == "cpu":
        return x.to(torch.promote_types(x.dtype, torch.float32))
    return x
