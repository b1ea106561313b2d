"""Transforming and quantizing in Triton: a site's input, and heads of Q, K and V.

A site is a launch for every rotation, the first of which subtracts the mean, and one that
quantizes. Of few tokens the last rotation quantizes too, whose programs count how many of them have
arrived; the launch before sets their counter to 0. With one permutation that makes two launches for
a token that is decoded. Heads are one launch, because a row of a head fits into a program.

Rotations multiply float32, whatever the dtype of the input, by the same instructions in both ways:
integers of a token are the same among few and among many, as long as these kernels are asked (of
many rows of half precision they are not: ``FUSED_ROWS``). Everything else repeats
:mod:`duquant.ops.triton_kernels.transform` and :mod:`duquant.ops.triton_kernels.rows`.
"""

import functools

import torch
from torch import Tensor

from duquant.ops.quantized_tokens import GRID_BYTES
from duquant.ops.transformed_tokens import (
    transformed_tokens_in_steps,
    transformed_values_in_steps,
)
from duquant.ops.triton_kernels.presence import runs_here
from duquant.ops.triton_kernels.rows import BYTE, ENTRIES, TAKEN, encode
from duquant.ops.triton_kernels.transform import (
    SMALLEST,
    Step,
    Tiles,
    room_for,
    rotate,
    rotation_steps,
)

FEW_TOKENS = 4
"""How many one program quantizes while all others have ended."""
WIDEST_HEAD = 256
HEAD_ROWS, HEAD_BLOCK = 16, 32


@functools.cache
def is_available() -> bool:
    """Whether this machine has the kernels; compiles them when asked for the first time."""
    return runs_here(_is_right)


def transformed_tokens(
    x: Tensor,
    mean: Tensor | None,
    rotations: Tensor,
    permutations: Tensor,
    bits: int,
    clip_ratio: float,
    clip_ends: Tensor | None,
    symmetric: bool,
) -> Tensor:
    """:func:`duquant.ops.transformed_tokens.transformed_tokens_in_steps` on a GPU.

    A permutation that names a channel which does not exist gives NaN, as scales of tokens.
    """
    grid = bits, clip_ratio, clip_ends, symmetric
    if not (_takes(x, bits) and rotations.numel() > 0 and is_available()):
        return transformed_tokens_in_steps(x, mean, rotations, permutations, *grid)
    return _tokens(x, mean, rotations, permutations, *grid)


def transformed_values(
    x: Tensor, rotation: Tensor | None, bits: int, clip_ratio: float, symmetric: bool
) -> Tensor:
    """:func:`duquant.ops.transformed_tokens.transformed_values_in_steps` on a GPU."""
    fits = rotation is None or (rotation.numel() > 0 and rotation.shape[-1] % HEAD_BLOCK == 0)
    if not (fits and _takes(x, bits) and x.shape[-1] <= WIDEST_HEAD and is_available()):
        return transformed_values_in_steps(x, rotation, bits, clip_ratio, symmetric)
    return _values(x, rotation, bits, clip_ratio, symmetric)


def _takes(x: Tensor, bits: int) -> bool:
    return x.dtype in TAKEN and x.numel() > 0 and bits <= BYTE


def _tokens(
    x: Tensor,
    mean: Tensor | None,
    rotations: Tensor,
    permutations: Tensor,
    bits: int,
    clip_ratio: float,
    clip_ends: Tensor | None,
    symmetric: bool,
) -> Tensor:
    width, shape = x.shape[-1], x.shape[:-1]
    mean = None if mean is None else mean.float().contiguous()
    assert mean is None or mean.shape == (width,)
    *firsts, last = rotation_steps(width, rotations.float().contiguous(), permutations)
    given = x.contiguous().view(-1, width)
    counts = len(firsts) > 0 and len(given) <= FEW_TOKENS
    arrivals = given.new_empty(1, dtype=torch.int32) if counts else None
    clip = bits, clip_ratio, clip_ends, symmetric
    with torch.cuda.device_of(x):
        for step in firsts:
            between = room_for(given, torch.float32)
            given = rotate(given, step, between, mean=mean, arrivals=arrivals, fuses=False)
            mean = None
        between = given.new_empty(given.shape, dtype=torch.float32)
        if arrivals is not None:
            tokens = _rotate_and_encode(given, last, between, arrivals, *clip)
        else:
            tokens = encode(rotate(given, last, between, mean=mean, fuses=False), *clip)
    return tokens.view(*shape, width + GRID_BYTES)


def _rotate_and_encode(
    x: Tensor,
    step: Step,
    between: Tensor,
    arrivals: Tensor,
    bits: int,
    clip_ratio: float,
    clip_ends: Tensor | None,
    symmetric: bool,
) -> Tensor:
    from duquant.ops.triton_kernels.source import transformed as source

    (tokens, width), (matrices, size, _) = x.shape, step.rotation.shape
    tiles, factors = Tiles.of(tokens, size), None if clip_ends is None else clip_ends.float()
    output = x.new_empty(tokens, width + GRID_BYTES, dtype=torch.uint8)
    source.rotate_and_encode[tiles.programs(tokens, width, size)](
        *(x, step.rotation, step.order, between, arrivals),
        *(None if factors is None else factors.contiguous(), output, tokens, width, size),
        *(size * size if matrices > 1 else 0, *x.stride(), float(clip_ratio)),
        HAS_ORDER=step.order is not None, HAS_ENDS=factors is not None,
        BITS=bits, SYMMETRIC=symmetric,
        TOKENS=tiles.tokens, CHANNELS=tiles.channels, BLOCK=tiles.rows,
        ROWS=FEW_TOKENS, COLUMNS=ENTRIES, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return output


def _values(
    x: Tensor, rotation: Tensor | None, bits: int, clip_ratio: float, symmetric: bool
) -> Tensor:
    from duquant.ops.triton_kernels.source import transformed as source

    x, width, size = x.contiguous(), x.shape[-1], 1
    rows, across = x.numel() // width, max(SMALLEST, 1 << (width - 1).bit_length())
    if rotation is not None:
        rotation, size = rotation.float().contiguous(), rotation.shape[-1]
        assert width % size == 0
    values = torch.empty_like(x)
    with torch.cuda.device_of(x):
        source.quantize_values[(-(-rows // HEAD_ROWS),)](
            *(x, rotation, values, rows, width, size, float(clip_ratio)),
            HAS_ROTATION=rotation is not None, BITS=bits, SYMMETRIC=symmetric,
            ROWS=HEAD_ROWS, COLUMNS=across, BLOCK=HEAD_BLOCK,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return values


def _is_right(device: torch.device) -> bool:
    """Exchange channels by rotations of zeros and ones: the result is exact."""
    size, blocks = 2 * HEAD_BLOCK, 3
    width, counts = size * blocks, (FEW_TOKENS, 2, 19)
    turned = torch.eye(size, dtype=torch.float32, device="cpu").roll(1, dims=1)
    rotations = torch.stack([turned, turned.t()]).unsqueeze(1)
    order = torch.arange(width, device="cpu").flip(0).view(1, width)
    mean = torch.arange(width, dtype=torch.float32, device="cpu").remainder(5)
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in counts:
            x = torch.arange(tokens * width, dtype=torch.float32, device="cpu").remainder(251)
            x = x.view(tokens, width).to(dtype)  # bfloat16 holds these
            given = x, mean, rotations, order
            moved = x.to(device), mean.to(device), rotations.to(device), order.to(device)
            found = _tokens(*moved, 4, 0.9, None, symmetric=False).cpu()
            if not torch.equal(found, transformed_tokens_in_steps(*given, 4, 0.9, None, False)):
                return False
        there = x.to(device)
        for rotation in (None, turned):
            at = None if rotation is None else rotation.to(device)
            values = _values(there, at, 4, 1.0, symmetric=False).cpu()
            expected = transformed_values_in_steps(x, rotation, 4, 1.0, symmetric=False)
            if not torch.allclose(values, expected, rtol=2.0**-7, atol=0):
                return False
    return True
