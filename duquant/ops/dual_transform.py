"""The dual transformation of a site: rotate, permute, rotate again.

    y = x · R₁ · P · R₂        W -> W · R₁ · P · R₂        so  y W'ᵀ = x Wᵀ

``R₁`` flattens outliers inside blocks, the zigzag ``P`` evens out the blocks, ``R₂`` flattens what
the permutation brought together (DuQuant section 3.3). ``permutation_times`` repeats the pair ``(R,
P)``; one last rotation always follows, so 0 times is a rotation alone.

Applying one is the operator ``duquant::transform_rows``, whose definition is PyTorch's operations
and whose kernels are listed in :mod:`duquant.ops.kernels.table`. Its gradient is written out once
for all of them; ``xᵢ`` is what rotation ``i`` receives, ``gᵢ`` the gradient that arrives behind it:

    ∂L/∂Rᵢ = xᵢᵀ gᵢ        ∂L/∂xᵢ = gᵢ Rᵢᵀ

Only where a rotation learns does the operator keep ``x`` for the backward pass.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from duquant.ops.kernel_presence import call, is_inlined
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
    none = torch.zeros(0, 0, dtype=torch.int64, device=matrix.device)
    return DualTransform(matrix.view(1, 1, *matrix.shape), none)


def apply_transform(x: Tensor, transform: DualTransform) -> Tensor:
    """Multiply the last dimension by ``R₁ P R₂ …``.

    Args:
        x: activation ``(..., width)`` or weight ``(out, width)``; computed in its own dtype.
        transform: rotations are converted to the dtype of ``x``.

    Differentiable, any number of times, in ``x`` and in the rotations.
    """
    if not len(transform.rotations) or is_inlined("transform_rows", x.device):
        return apply_in_steps(x, transform)
    result: Tensor = call(transform_rows, x, *transform)
    return result


def apply_in_steps(x: Tensor, transform: DualTransform) -> Tensor:
    """:func:`apply_transform` by PyTorch's operations and its own gradient; what kernels equal."""
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


def inverse_transposed(transform: DualTransform) -> DualTransform:
    """What a weight goes through that reads ``transform``: inverses, transposed.

    Differentiable in the blocks; inverses of orthogonal ones are computed too. Of a block that has
    no inverse the result is not finite. An error would have the host wait for the device at every
    step of a training, which leaves out steps that are not finite.
    """
    inverse, _ = torch.linalg.inv_ex(transform.rotations)
    return DualTransform(inverse.transpose(-1, -2), transform.permutations)


def transform_rows_in_steps(x: Tensor, rotations: Tensor, permutations: Tensor) -> Tensor:
    """Multiply the last dimension by ``R₁ P₁ R₂ …``, a pass over ``x`` for each.

    Args:
        x: ``(..., width)``.
        rotations: ``(times + 1, 1 or width / b, b, b)``, at least one.
        permutations: integers ``(times, width)``.

    Returns:
        Shape and dtype of ``x``, contiguous.
    """
    return apply_in_steps(x, DualTransform(rotations, permutations))


transform_rows = torch.library.custom_op(
    "duquant::transform_rows", transform_rows_in_steps, mutates_args=()
)


@transform_rows.register_fake
def _(x: Tensor, rotations: Tensor, permutations: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    x, rotations, permutations = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, rotations, permutations)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, *matrices = ctx.saved_tensors
    transform = DualTransform(*matrices)
    if x is None:
        return apply_transform(grad, inverse_transform(transform)), None, None
    to_rotations = []
    for index, received in reversed(list(enumerate(_received(x, transform)))):
        if index < len(transform.permutations):
            grad = permute_channels(grad, transform.permutations[index].argsort())
        rotation = transform.rotations[index]
        to_rotations.append(_to_rotation(received, grad, rotation))
        if index or ctx.needs_input_grad[0]:
            grad = _rotated(grad, rotation.transpose(-1, -2))
    to_x = grad if ctx.needs_input_grad[0] else None
    return to_x, torch.stack(to_rotations[::-1]), None


transform_rows.register_autograd(_backward, setup_context=_keep_for_backward)


def _received(x: Tensor, transform: DualTransform) -> Iterator[Tensor]:
    """What each rotation is given."""
    yield x
    for rotation, permutation in zip(transform.rotations, transform.permutations, strict=False):
        x = permute_channels(_rotated(x, rotation), permutation)
        yield x


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """``x`` through one rotation ``(matrices, b, b)``."""
    none = torch.zeros(0, x.shape[-1], dtype=torch.int64, device=x.device)
    return apply_transform(x, DualTransform(rotation.unsqueeze(0), none))


def _to_rotation(x: Tensor, grad: Tensor, rotation: Tensor) -> Tensor:
    """``xᵀ g`` of every block, shape and dtype of ``rotation``."""
    num_matrices, size, _ = rotation.shape
    x, grad = (part.reshape(-1, num_matrices, size).transpose(0, 1) for part in (x, grad))
    return (x.transpose(1, 2) @ grad).to(rotation.dtype)


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
