"""How large a stored block will be, from the shapes of a block without weights."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from duquant.config import Recipe
from duquant.export.packed_block import outside_linears
from duquant.model.structure import SITES, linear_shapes
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.transforms.table import transform_class


def packed_bytes(block: nn.Module, recipe: Recipe) -> int:
    """Bytes that :func:`pack_block` takes at most, from the shapes of a block without weights."""
    norms = list(outside_linears(block).values())
    item = norms[0].dtype.itemsize
    size = sum(tensor.numel() for tensor in norms) * item
    form = recipe.formats.weights
    for name, (rows, columns) in linear_shapes(block).items():
        if form.bits >= UNQUANTIZED_BITS:
            size += rows * columns * item
        else:
            size += _num_bytes(form.stored_shapes(rows, columns))
        bias = getattr(block.get_submodule(name), "bias", None)
        size += rows * item if bias is not None or recipe.smoothing.subtract_mean else 0
    for site in SITES:
        width = linear_shapes(block)[site.linears[0]][1]
        size += width * torch.float32.itemsize  # a scale that is divided online
        size += width * torch.float32.itemsize if recipe.smoothing.subtract_mean else 0
        size += _num_bytes(transform_class(recipe.rotation).stored_shapes(width, recipe.rotation))
    return size


def _num_bytes(stored: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in stored.values())
