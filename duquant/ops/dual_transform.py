"""The dual transformation of a site: rotate, permute, rotate again.

    y = x · R₁ · P · R₂        W -> W · R₁ · P · R₂        so  y W'ᵀ = x Wᵀ

``R₁`` flattens outliers inside blocks, the zigzag ``P`` evens out the blocks, ``R₂`` flattens what
the permutation brought together (DuQuant section 3.3). ``permutation_times`` repeats the pair ``(R,
P)``; one last rotation always follows, so 0 times is a rotation alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from duquant.ops.kernels import transform as kernel
from duquant.ops.permutation import permute_channels, zigzag_permutation
from duquant.ops.rotation import block_rotate

RotationFinder = Callable[[Tensor], Tensor]
"""``(tokens, width) -> (1 or width / b, b, b)``."""


class DualTransform(NamedTuple):
    """What a site does to its input and to its weights.

    Attributes:
        rotations: shape ``(times + 1, matrices, b, b)``; 0 in the first dimension is the identity.
        permutations: int64 of shape ``(times, width)``.
    """

    rotations: Tensor
    permutations: Tensor


def rotation_alone(matrix: Tensor) -> DualTransform:
    """Every block multiplied by ``matrix (b, b)``; the width is that of what it is applied to."""
    return DualTransform(matrix.view(1, 1, *matrix.shape), torch.zeros(0, 0, dtype=torch.int64))


def apply_transform(x: Tensor, transform: DualTransform) -> Tensor:
    """Multiply the last dimension by ``R₁ P R₂ …``.

    Args:
        x: activation ``(..., width)`` or weight ``(out, width)``; computed in its own dtype.
        transform: rotations are converted to the dtype of ``x``.

    Processors do all steps at once in C (:mod:`duquant.ops.kernels.transform`).
    """
    if kernel.serves(x, transform.rotations):
        by_kernel: Tensor = _TransformRows.apply(x, *transform)
        return by_kernel
    return apply_in_steps(x, transform)


def apply_in_steps(x: Tensor, transform: DualTransform) -> Tensor:
    """:func:`apply_transform` in PyTorch alone: one pass for every rotation and permutation."""
    for index, rotation in enumerate(transform.rotations):
        x = block_rotate(x, rotation.to(x.dtype))
        if index < len(transform.permutations):
            x = permute_channels(x, transform.permutations[index])
    return x


def inverse_transform(transform: DualTransform) -> DualTransform:
    """The transform that undoes another: transposed rotations, inverse permutations, backwards."""
    return DualTransform(
        transform.rotations.flip(0).transpose(-1, -2), transform.permutations.flip(0).argsort(-1)
    )


class _TransformRows(torch.autograd.Function):
    """A matrix product with an orthogonal matrix: gradients go through its transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotations: Tensor, permutations: Tensor) -> Tensor:
        ctx.transform = DualTransform(rotations, permutations)
        result: Tensor = kernel.transform_rows(x, rotations, permutations)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        result: Tensor = kernel.transform_rows(grad, *inverse_transform(ctx.transform))
        return result, None, None


def find_transform(
    x: Tensor, find_rotation: RotationFinder, *, block_size: int, permutation_times: int
) -> DualTransform:
    """Search the dual transformation on a calibration tensor.

    Args:
        x: float32 of shape ``(tokens, width)``, already smoothed.
        find_rotation: chooses one rotation for the tensor as it stands.
        block_size: channels of a block.
        permutation_times: how often ``(R, P)`` is repeated before the last rotation.
    """
    rotations, permutations = [], []
    for _ in range(permutation_times):
        rotations.append(find_rotation(x))
        x = block_rotate(x, rotations[-1])
        permutations.append(zigzag_permutation(x.abs().amax(dim=0), block_size))
        x = x.index_select(-1, permutations[-1])
    rotations.append(find_rotation(x))
    order = torch.stack(permutations) if permutations else x.new_zeros(0, x.shape[-1]).long()
    return DualTransform(torch.stack(rotations), order)
