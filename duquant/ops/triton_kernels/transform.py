"""A site's transform in Triton: one pass over the activation for every rotation.

A permutation costs no pass of its own: the rotation behind it reads its channels in that order.
What lies between two rotations is stored channel by channel, so that a channel's tokens, wherever
it is, are read together.

Products are those of the activation's dtype, summed in float32 and rounded once per rotation, as
PyTorch's are on a GPU; float32 is multiplied as float32. The order of the sums differs, so results
agree to rounding. The gradient is the operator's (:mod:`duquant.ops.dual_transform`).
"""

import functools
from typing import NamedTuple

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
    x, rotations = x.contiguous(), rotations.to(x.dtype).contiguous()
    result, width = torch.empty_like(x), x.shape[-1]
    steps = rotation_steps(width, rotations, permutations)
    given = x.view(-1, width)
    with torch.cuda.device_of(x):
        for step in steps[:-1]:
            given = rotate(given, step, room_for(given, x.dtype))
        rotate(given, steps[-1], result.view(-1, width))
    return result


class Step(NamedTuple):
    """One rotation and the order in which it reads its channels.

    Attributes:
        rotation: ``(matrices, size, size)``, contiguous.
        order: integers ``(width,)``, or ``None``.
    """

    rotation: Tensor
    order: Tensor | None


def rotation_steps(width: int, rotations: Tensor, permutations: Tensor) -> list[Step]:
    """The steps of a transform of ``width`` channels, checked for shapes that fit."""
    steps, matrices, size, _ = rotations.shape
    assert width % size == 0
    assert matrices in (1, width // size)
    assert len(permutations) == steps - 1
    orders = (None, *permutations.contiguous())
    return [Step(*pair) for pair in zip(rotations, orders, strict=True)]


def room_for(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for what lies between two rotations of ``x (tokens, width)``, channel by channel."""
    tokens, width = x.shape
    room = tokens if tokens < ALIGNED else -(-tokens // ALIGNED) * ALIGNED
    return x.new_empty(width, room, dtype=dtype).t()[:tokens]


class Tiles(NamedTuple):
    """How a step's work is cut: a program for each tile of tokens and columns of a block."""

    tokens: int
    channels: int
    rows: int

    @classmethod
    def of(cls, tokens: int, size: int) -> "Tiles":
        """For so many tokens and blocks of ``size`` channels."""
        sizes = (tokens, MOST_TOKENS), (size, MOST_CHANNELS), (size, MOST_ROWS)
        return cls(
            *(max(SMALLEST, min(most, 1 << (each - 1).bit_length())) for each, most in sizes)
        )

    def programs(self, tokens: int, width: int, size: int) -> tuple[int, int]:
        """How many there are, across the tokens and across the channels."""
        return -(-tokens // self.tokens), width // size * -(-size // self.channels)


def rotate(
    x: Tensor,
    step: Step,
    y: Tensor,
    *,
    mean: Tensor | None = None,
    arrivals: Tensor | None = None,
    fuses: bool = True,
) -> Tensor:
    """One launch: ``x (tokens, width)`` through a step into ``y``, which comes back.

    Args:
        x: floats.
        step: its rotation is float32 where ``y`` is, and else in the dtype of ``x``.
        y: ``(tokens, width)``.
        mean: float32 ``(width,)``, subtracted first.
        arrivals: int32, a counter that is set to 0 for the next launch.
        fuses: whether a product and a sum may be rounded once.
    """
    from duquant.ops.triton_kernels.source import transform as source

    (tokens, width), (matrices, size, _) = x.shape, step.rotation.shape
    tiles = Tiles.of(tokens, size)
    source.rotate_blocks[tiles.programs(tokens, width, size)](
        *(x, mean, step.rotation, step.order, y, arrivals),
        *(tokens, width, size, size * size if matrices > 1 else 0, *x.stride(), *y.stride()),
        HAS_MEAN=mean is not None, HAS_ORDER=step.order is not None,
        IS_COUNTED=arrivals is not None,
        WIDENS=y.dtype == torch.float32 or is_interpreted(),
        TOKENS=tiles.tokens, CHANNELS=tiles.channels, BLOCK=tiles.rows,
        num_warps=4, enable_fp_fusion=fuses,
    )  # fmt: skip
    return y


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
