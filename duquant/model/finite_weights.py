"""One pass over a model's weights before any work: every value must be a finite number.

A NaN in a row of the embeddings that no calibration text reaches, in the head or in a norm would
otherwise surface hours later, or never. Tensors are mapped one after the other and nothing is
copied: about half a second per GB, or what the disk needs to give them.
"""

from pathlib import Path

import torch
from torch import Tensor

from duquant.model.checkpoint import Checkpoint
from duquant.ops.finite import DTYPE_OPTION, is_finite, remedy


def require_finite_weights(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, option: str = DTYPE_OPTION
) -> None:
    """Check every tensor of a model.

    Args:
        checkpoint: the model's tensors.
        dtype: dtype they are going to be read in, which may be too narrow for them (default: each
            as it is stored).
        option: what chooses the dtype.

    Raises:
        ValueError: naming the first tensor with such values, its file, and how many they are.
    """
    for name, tensor in checkpoint.tensors(checkpoint.files):
        require_finite_tensor(tensor, name, checkpoint.files[name], dtype, option)


def require_finite_tensor(
    tensor: Tensor,
    name: str,
    file: Path,
    dtype: torch.dtype | None = None,
    option: str = DTYPE_OPTION,
) -> None:
    """Check one stored tensor; the rest is as in :func:`require_finite_weights`."""
    if is_finite(tensor, dtype):
        return
    if dtype is not None and is_finite(tensor):
        beyond, limit = tensor.abs() > torch.finfo(dtype).max, f"{torch.finfo(dtype).max:g}"
        raise ValueError(
            f"{file}: {int(beyond.sum())} of {tensor.numel()} values of {name} are beyond {limit}, "
            f"the largest number of this dtype: {remedy(dtype, option)}"
        )
    undefined = tensor.numel() - int(tensor.isfinite().sum())
    raise ValueError(
        f"{file}: {undefined} of {tensor.numel()} values of {name} are not finite (NaN or "
        f"infinity): the model is damaged; fetch or save it again"
    )
