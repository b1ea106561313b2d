"""A site's transform in C: all rotations and permutations of a few tokens while they are cached.

PyTorch passes over the whole activation for every rotation and every permutation, and gathers with
an index for every entry. ``transform.c`` reads the activation once and writes it once. A rotation's
products are summed in the order of the channels, as PyTorch's usually are, but nothing promises
that: results of the two agree to float32 rounding.

It takes float32 in blocks that are a multiple of :func:`panel_width`; PyTorch does the rest. The
gradient is the operator's (:mod:`duquant.ops.dual_transform`).
"""

import ctypes
import functools

import torch
from torch import Tensor

from duquant.ops.dual_transform import transform_rows_in_steps
from duquant.ops.kernels.compiler import load_library


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
    if library is None or not _takes(library, x, rotations):
        return transform_rows_in_steps(x, rotations, permutations)
    x, width = x.contiguous(), x.shape[-1]
    rotations = rotations.float().contiguous()
    steps, matrices, size, _ = rotations.shape
    assert width % size == 0
    assert matrices in (1, width // size)
    orders = _orders(permutations, steps, width)
    out = torch.empty_like(x)
    pointers = [tensor.data_ptr() for tensor in (x, out, rotations, orders)]
    sizes = (x.numel() // width, width, steps, matrices, size)
    if library.transform_rows(*pointers, *sizes, torch.get_num_threads()):
        raise MemoryError(f"no memory to transform rows of {width} channels")
    return out


def _takes(library: ctypes.CDLL, x: Tensor, rotations: Tensor) -> bool:
    has_entries = x.numel() > 0 and rotations.numel() > 0
    is_whole = has_entries and rotations.shape[-1] % library.panel_width() == 0
    return x.dtype == torch.float32 and is_whole


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
    size, tokens = library.panel_width(), 19
    width = 3 * size
    x = torch.arange(tokens * width, dtype=torch.float32, device="cpu").view(tokens, width)
    turned = torch.eye(size, dtype=torch.float32, device="cpu").roll(1, dims=1)
    rotations = torch.stack([turned, turned]).unsqueeze(1).contiguous()
    forwards = torch.arange(width, dtype=torch.int32, device="cpu")
    orders = torch.stack([forwards, forwards.flip(0)])
    out = torch.empty_like(x)
    pointers = [tensor.data_ptr() for tensor in (x, out, rotations, orders)]
    failed = library.transform_rows(*pointers, tokens, width, 2, 1, size, 1)
    blocks = (x.view(tokens, 3, size) @ turned).view(tokens, width).flip(1)
    return not failed and torch.equal(out, (blocks.view(tokens, 3, size) @ turned).view_as(out))
