"""What the stored tensors of a quantized model may hold, checked before any kernel sees them.

Checksums tell that tensors are those that were written; they do not tell that what was written
makes sense. A scale of zero, a zero point far outside, a permutation that names a channel twice or
one that does not exist would be computed with, or read memory that is not there.

| tensor | dtype | values |
|---|---|---|
| ``packed`` | uint8 | any: every pattern of bits is an integer of its width |
| ``scale``, ``online_scale`` | float32 | finite and positive |
| ``zero`` | int16 | from -10000 to 16384 |
| ``permutations`` | int32 or int64 | in every row each channel once |
| ``rotations`` | float32 | finite |
| any other | floating point | finite |
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from duquant.model.checkpoint import open_safetensors
from duquant.ops.affine import LARGEST_SCALE
from duquant.ops.finite import is_finite

LOWEST_ZERO, LARGEST_ZERO = -int(LARGEST_SCALE), 2**14
"""Zero points are clamped to the first, and half of 15 bits is the second."""
Check = Callable[[Tensor], bool]


def require_sensible_files(files: Iterable[Path]) -> None:
    """Check every tensor of these files, which are mapped one after the other, not copied.

    Raises:
        ValueError: naming file and tensor, and saying what its values must be.
    """
    for file in files:
        with open_safetensors(file) as opened:
            for name in opened.keys():  # noqa: SIM118
                require_sense({name: opened.get_tensor(name)}, file)


def require_sense(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Check tensors of a file by the last part of their names.

    Raises:
        ValueError: as :func:`require_sensible_files`.
    """
    for name, tensor in tensors.items():
        dtypes, check, wanted = RULES.get(name.rpartition(".")[2], (FLOATS, is_finite, "finite"))
        if tensor.dtype not in dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            stored = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{file}: {name} is stored as {stored}; it must be {names}")
        if tensor.numel() and not check(tensor):
            raise ValueError(f"{file}: {name} holds values that cannot be; they must be {wanted}")


def _is_positive(scale: Tensor) -> bool:
    return is_finite(scale) and bool(scale.min() > 0)


def _is_in_range(zero: Tensor) -> bool:
    return int(zero.min()) >= LOWEST_ZERO and int(zero.max()) <= LARGEST_ZERO


def _is_permutation(permutations: Tensor) -> bool:
    rows = permutations.reshape(-1, permutations.shape[-1]).long()
    channels = torch.arange(rows.shape[1], device=rows.device)
    return torch.equal(rows.sort(dim=1).values, channels.expand_as(rows))


def _is_any(packed: Tensor) -> bool:
    return True


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
RULES: dict[str, tuple[tuple[torch.dtype, ...], Check, str]] = {
    "packed": ((torch.uint8,), _is_any, "integers"),
    "scale": ((torch.float32,), _is_positive, "finite and positive"),
    "online_scale": ((torch.float32,), _is_positive, "finite and positive"),
    "zero": ((torch.int16,), _is_in_range, f"from {LOWEST_ZERO} to {LARGEST_ZERO}"),
    "permutations": (
        (torch.int32, torch.int64),
        _is_permutation,
        "every channel once, numbered from 0",
    ),
    "rotations": ((torch.float32,), is_finite, "finite"),
}
"""By the last part of a tensor's name: dtypes, check of the values, what they must be."""
