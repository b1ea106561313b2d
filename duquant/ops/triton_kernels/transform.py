"""A site's transform in Triton: one pass over the activation for every rotation.

A permutation costs no pass of its own: the rotation behind it reads its channels in that order.
What lies between two rotations is stored channel by channel, so that a channel's tokens, wherever
it is, are read together.

Products are those of the activation's dtype, summed in float32 and rounded once per rotation, as
PyTorch's are on a GPU; float32 is multiplied as float32. The order of the sums differs, so results
agree to rounding. The gradient is the operator's (:mod:`duquant.ops.dual_transform`).
"""

import functools

import torch
from torch import Tensor

from duquant.ops.dual_transform import transform_rows_in_steps
from duquant.ops.triton_kernels.presence import is_interpreted, runs_here

TAKEN = (torch.float32, torch.bfloat16, torch.float16)
SMALLEST = 16
"""Sizes of a tile are powers of two, and no smaller than what tensor cores multiply."""
MOST_TOKENS, MOST_CHANNELS, MOST_ROWS = 64, 128, 32
ALIGNED = 16
"""Tokens of a channel begin at multiples of that many where there are enough of them."""


@functools.cache
def is_available() -> bool:
    """Whether this machine has the kernel; compiles it when asked for the first time."""
    return runs_here(_is_right)


def transform_rows(x: Tensor, rotations: Tensor, permutations: Tensor) -> Tensor:
    """:func:`duquant.ops.dual_transform.transform_rows_in_steps` on a GPU.

    A permutation that names a channel which does not exist gives NaN: to look beforehand would make
    the host wait.
    """
    is_taken = x.dtype in TAKEN and x.numel() > 0 and rotations.numel() > 0
    if not (is_taken and is_available()):
        return transform_rows_in_steps(x, rotations, permutations)
    return _transform(x, rotations, permutations)


def _transform(x: Tensor, rotations: Tensor, permutations: Tensor) -> Tensor:
    steps, matrices, size, _ = rotations.shape
    width = x.shape[-1]
    assert width % size == 0
    assert matrices in (1, width // size)
    assert len(permutations) == steps - 1
    x, rotations = x.contiguous(), rotations.to(x.dtype).contiguous()
    result, tokens = torch.empty_like(x), x.numel() // width
    room = tokens if tokens < ALIGNED else -(-tokens // ALIGNED) * ALIGNED
    given, orders = x.view(tokens, width), (None, *permutations.contiguous())
    with torch.cuda.device_of(x):
        for step, (rotation, order) in enumerate(zip(rotations, orders, strict=True)):
            is_last = step == steps - 1
            between = None if is_last else x.new_empty(width, room).t()[:tokens]
            taken = result.view(tokens, width) if between is None else between
            _rotate(given, rotation, order, taken)
            given = taken
    return result


def _rotate(x: Tensor, rotation: Tensor, order: Tensor | None, y: Tensor) -> None:
    from duquant.ops.triton_kernels.source import transform as source

    (tokens, width), (matrices, size, _) = x.shape, rotation.shape
    rows, channels, block = (
        max(SMALLEST, min(most, 1 << (count - 1).bit_length()))
        for count, most in ((tokens, MOST_TOKENS), (size, MOST_CHANNELS), (size, MOST_ROWS))
    )
    source.rotate_blocks[-(-tokens // rows), width // size * -(-size // channels)](
        *(x, rotation, order, y, tokens, width, size, size * size if matrices > 1 else 0),
        *(*x.stride(), *y.stride()),
        HAS_ORDER=order is not None, WIDENS=is_interpreted(),
        TOKENS=rows, CHANNELS=channels, BLOCK=block, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


def _is_right(device: torch.device) -> bool:
    """Compare two rotations with a permutation between them with the definition on the CPU."""
    size, width, tokens = 24, 72, 19
    x = torch.linspace(-3, 5, tokens * width, dtype=torch.float32, device="cpu").sin()
    matrices = torch.linspace(1, 9, 6 * size * size, dtype=torch.float32, device="cpu").cos()
    x, matrices = x.view(tokens, width), matrices.view(2, 3, size, size) / size**0.5
    order = torch.arange(width, device="cpu").flip(0).view(1, width)
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 2.0**-6)):
        given = x.to(dtype), matrices, order
        found = _transform(*(each.to(device) for each in given)).cpu()
        expected = transform_rows_in_steps(*given)
        if not torch.allclose(found, expected, rtol=0, atol=error * float(expected.abs().max())):
            return False
    return True
