"""A checksum of a block's quantized tensors, to notice when one was altered.

Only tensors that no one may convert take part: integers, grids and transforms. Norms and biases are
ordinary parameters, which loading may cast. It finds accidents, not attacks.
"""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

EXACT_LEAVES = ("packed", "scale", "zero", "rotations", "permutations", "online_scale")


def block_digest(tensors: Mapping[str, Tensor]) -> str | None:
    """CRC-32 over names, dtypes, shapes and bytes; ``None`` if a tensor is not in memory."""
    checksum = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        if name.rpartition(".")[2] not in EXACT_LEAVES:
            continue
        if tensor.is_meta:
            return None
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode(), checksum)
        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        checksum = zlib.crc32(raw.numpy().data, checksum)
    return f"{checksum:08x}"
