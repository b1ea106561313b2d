"""A fingerprint of a block's quantized tensors, to notice when one was altered.

Only tensors that no one may convert take part: integers, grids and transforms. Norms and biases are
ordinary parameters, which loading may cast.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

EXACT_LEAVES = ("packed", "scale", "zero", "rotations", "permutations", "online_scale")


def block_digest(tensors: Mapping[str, Tensor]) -> str | None:
    """SHA-256 over names, dtypes, shapes and bytes; ``None`` if a tensor is not in memory."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        if name.rpartition(".")[2] not in EXACT_LEAVES:
            continue
        if tensor.is_meta:
            return None
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
