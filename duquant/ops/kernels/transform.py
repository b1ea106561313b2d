"""A site's transform in C: all rotations and permutations of a few tokens while they are cached.

PyTorch passes over the whole activation for every rotation and every permutation, and gathers with
an index for every entry. ``transform.c`` reads the activation once and writes it once. A rotation's
products are summed in the order of the channels, as PyTorch's usually are, but nothing promises
that: results of the two agree to float32 rounding.

``quantize_transformed`` of the same source goes on and quantizes these tokens. Of float32 its
integers are those of the two steps. Of 64 or more tokens in bfloat16 processors with AMX multiply
parts of rotations in bfloat16: about 1 integer in 100,000 differs by 1 from that of fewer tokens.

Tokens may be float32, or bfloat16 where they are quantized too; blocks must be a multiple of
:func:`panel_width`. PyTorch does the rest. The gradient is the operator's
(:mod:`duquant.ops.dual_transform`).
"""

import ctypes
import functools

import torch
from torch import Tensor

from duquant.ops.affine import LARGEST_SCALE, SMALLEST_SCALE, largest_zero
from duquant.ops.dual_transform import transform_rows_in_steps
from duquant.ops.kernels.compiler import load_library
from duquant.ops.kernels.rows import BYTE
from duquant.ops.quantized_tokens import GRID_BYTES, quantize_tokens_in_steps
from duquant.ops.transformed_tokens import (
    transformed_tokens_in_steps,
    transformed_values_in_steps,
)

TESTED_TOKENS = (19, 67)
"""Few and many: processors with AMX multiply many otherwise."""


class _Range(ctypes.Structure):
    """How a token's range becomes its grid, as the C source has it."""

    _fields_ = tuple(
        (name, ctypes.c_float)
        for name in (
            *("of_high", "of_low", "largest", "middle"),
            *("smallest_scale", "largest_scale", "largest_zero"),
        )
    )


def is_available() -> bool:
    """Whether this machine has the kernel; compiles it when asked for the first time."""
    return _library() is not None


def panel_width() -> int:
    """What the kernel's block sizes are multiples of; 0 without a kernel."""
    library = _library()
    return 0 if library is None else int(library.panel_width())


def transform_rows(x: Tensor, rotations: Tensor, permutations: Tensor) -> Tensor:
    """:func:`duquant.ops.dual_transform.transform_rows_in_steps` on a processor.

    Raises:
        ValueError: if a permutation, which a file may bring, names a channel that does not exist.
    """
    library = _library()
    if library is None or x.dtype != torch.float32 or not _has_panels(library, x, rotations):
        return transform_rows_in_steps(x, rotations, permutations)
    x, width = x.contiguous(), x.shape[-1]
    rotations = rotations.float().contiguous()
    orders = _orders(permutations, len(rotations), width)
    out = torch.empty_like(x)
    pointers = [tensor.data_ptr() for tensor in (x, out, rotations, orders)]
    if library.transform_rows(*pointers, *_sizes(x, rotations), torch.get_num_threads()):
        raise MemoryError(f"no memory to transform rows of {width} channels")
    return out


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
    """:func:`duquant.ops.transformed_tokens.transformed_tokens_in_steps` on a processor.

    Raises:
        ValueError: as :func:`transform_rows`.
    """
    clip = clip_ratio, clip_ends, symmetric
    if not _takes(x, rotations, bits):
        return transformed_tokens_in_steps(x, mean, rotations, permutations, bits, *clip)
    x = x.contiguous()
    mean = None if mean is None else mean.float().contiguous()
    assert mean is None or (mean.shape == (x.shape[-1],) and mean.device == x.device)
    out = x.new_empty(*x.shape[:-1], x.shape[-1] + GRID_BYTES, dtype=torch.uint8)
    _quantize(_library(), x, mean, out, rotations, permutations, _range(bits, *clip))
    return out


def transformed_values(
    x: Tensor, rotation: Tensor | None, bits: int, clip_ratio: float, symmetric: bool
) -> Tensor:
    """:func:`duquant.ops.transformed_tokens.transformed_values_in_steps` on a processor."""
    if not _takes(x, rotation, bits):
        return transformed_values_in_steps(x, rotation, bits, clip_ratio, symmetric)
    x = x.contiguous()
    out = torch.empty_like(x)
    rotations = None if rotation is None else rotation.view(1, 1, *rotation.shape)
    none = torch.zeros(0, x.shape[-1], dtype=torch.int64, device=x.device)
    grid = _range(bits, clip_ratio, None, symmetric)
    _quantize(_library(), x, None, out, rotations, none, grid)
    return out


def _takes(x: Tensor, rotations: Tensor | None, bits: int) -> bool:
    library = _library()
    if library is None or x.dtype not in (torch.float32, torch.bfloat16) or bits > BYTE:
        return False
    return x.numel() > 0 if rotations is None else _has_panels(library, x, rotations)


def _range(bits: int, clip_ratio: float, clip_ends: Tensor | None, symmetric: bool) -> _Range:
    of_high, of_low = (clip_ratio, clip_ratio) if clip_ends is None else clip_ends.tolist()
    middle = 2 ** (bits - 1) - 1 if symmetric else 0
    scales = SMALLEST_SCALE, LARGEST_SCALE, largest_zero(bits)
    return _Range(of_high, of_low, 2**bits - 1, middle, *scales)


def _quantize(
    library: ctypes.CDLL | None,
    x: Tensor,
    mean: Tensor | None,
    out: Tensor,
    rotations: Tensor | None,
    permutations: Tensor,
    grid: _Range,
) -> None:
    assert library is not None
    width = x.shape[-1]
    sizes: tuple[int, ...] = (x.numel() // width, width, 0, 0, 0)
    orders = None
    if rotations is not None:
        rotations = rotations.float().contiguous()
        orders, sizes = _orders(permutations, len(rotations), width), _sizes(x, rotations)
    pointers = [None if t is None else t.data_ptr() for t in (x, mean, out, rotations, orders)]
    kinds = x.dtype == torch.bfloat16, out.dtype == x.dtype
    if library.quantize_transformed(
        *(pointers[0], kinds[0], *pointers[1:3], kinds[1], *pointers[3:]),
        *sizes,
        ctypes.byref(grid),
        torch.get_num_threads(),
    ):
        raise MemoryError(f"no memory to transform tokens of {width} channels")


def _has_panels(library: ctypes.CDLL, x: Tensor, rotations: Tensor) -> bool:
    assert rotations.device == x.device  # on the meta device they have no memory
    has_entries = x.numel() > 0 and rotations.numel() > 0
    return has_entries and rotations.shape[-1] % library.panel_width() == 0


def _sizes(x: Tensor, rotations: Tensor) -> tuple[int, ...]:
    """Rows, width, steps, matrices and block size, as both functions of the source take them."""
    steps, matrices, size, _ = rotations.shape
    width = x.shape[-1]
    assert width % size == 0
    assert matrices in (1, width // size)
    return x.numel() // width, width, steps, matrices, size


def _orders(permutations: Tensor, steps: int, width: int) -> Tensor:
    """Where every step reads its channels; C does not look whether they exist."""
    assert len(permutations) == steps - 1
    if steps == 1:
        return _as_they_are(width)
    orders = torch.cat([_as_they_are(width), permutations.to(torch.int32)])
    lowest, highest = orders.aminmax()
    if lowest < 0 or highest >= width:
        raise ValueError(
            f"a permutation of {width} channels names channels {int(lowest)} to {int(highest)}: "
            f"the model is damaged, quantize it again"
        )
    return orders


@functools.lru_cache(maxsize=16)
def _as_they_are(width: int) -> Tensor:
    return torch.arange(width, dtype=torch.int32, device="cpu").view(1, width)


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load_library("transform", _is_right)


def _is_right(library: ctypes.CDLL) -> bool:
    """Exchange channels by rotations of zeros and ones: the result is exact."""
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.transform_rows.argtypes = [*[pointer] * 4, *[number] * 5, ctypes.c_int]
    library.quantize_transformed.argtypes = [
        *(pointer, ctypes.c_int, pointer, pointer, ctypes.c_int, pointer, pointer),
        *([number] * 5),
        *(ctypes.POINTER(_Range), ctypes.c_int),
    ]
    return all(_is_exact(library, tokens) for tokens in TESTED_TOKENS)


def _is_exact(library: ctypes.CDLL, tokens: int) -> bool:
    size = library.panel_width()
    width = 3 * size
    counted = torch.arange(tokens * width, dtype=torch.float32, device="cpu")
    x = counted.remainder(251).view(tokens, width)  # bfloat16 holds these
    turned = torch.eye(size, dtype=torch.float32, device="cpu").roll(1, dims=1)
    rotations = torch.stack([turned, turned]).unsqueeze(1).contiguous()
    forwards = torch.arange(width, dtype=torch.int32, device="cpu")
    orders = torch.stack([forwards, forwards.flip(0)])
    out = torch.empty_like(x)
    pointers = [tensor.data_ptr() for tensor in (x, out, rotations, orders)]
    failed = library.transform_rows(*pointers, tokens, width, 2, 1, size, 1)
    blocks = (x.view(tokens, 3, size) @ turned).view(tokens, width).flip(1)
    expected = (blocks.view(tokens, 3, size) @ turned).view_as(out)
    encoded = out.new_empty(tokens, width + GRID_BYTES, dtype=torch.uint8)
    grid = _range(BYTE, 1.0, None, False)
    _quantize(library, x.bfloat16(), None, encoded, rotations, orders[1:], grid)
    integers = quantize_tokens_in_steps(expected, BYTE, 1.0, None, False)
    return not failed and torch.equal(out, expected) and torch.equal(encoded, integers)
