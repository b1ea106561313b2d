"""Transform and quantize in one step: a site's input, and heads of Q, K and V.

The definitions are :mod:`duquant.ops.dual_transform` followed by quantization. A kernel takes a few
rows at a time through all of it while they are in the cache, so no step in between is written to
memory.
"""

import torch
from torch import Tensor

from duquant.ops.affine import fake_quantize
from duquant.ops.dual_transform import rotation_alone, transform_rows_in_steps
from duquant.ops.kernel_presence import is_present
from duquant.ops.precision import widen
from duquant.ops.quantized_tokens import GRID_BYTES, quantize_tokens_in_steps

FUSED_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
"""What the kernels of a device take."""
FUSED_BLOCK = 32
"""The kernels of every machine take blocks that are multiples of it."""
FUSED_ROWS = 512
"""Most rows of half precision that are one step on a GPU. Its kernel multiplies float32, and saves
launches; of many rows the tensor cores, which multiply half precision, are faster."""


def is_fused(operator: str, x: Tensor, rotation: Tensor | None, mean: Tensor | None = None) -> bool:
    """Whether a kernel does all steps at once; where not, a kernel for each is faster.

    Args:
        operator: ``transformed_tokens`` or ``transformed_values``.
        x: what is transformed.
        rotation: matrices ``(..., b, b)``, or ``None``. While accelerate offloads them they lie on
            the meta device, and only the module that holds them can compute with them.
        mean: ``(width,)``, or ``None``.
    """
    if any(tensor is not None and tensor.device != x.device for tensor in (rotation, mean)):
        return False
    if rotation is not None and (not rotation.numel() or rotation.shape[-1] % FUSED_BLOCK):
        return False
    device = x.device.type
    if device == "cuda" and x.element_size() < 4 and x.numel() > FUSED_ROWS * x.shape[-1]:
        return False
    return x.dtype in FUSED_DTYPES.get(device, ()) and is_present(operator, device)


def transformed_tokens_in_steps(
    x: Tensor,
    mean: Tensor | None,
    rotations: Tensor,
    permutations: Tensor,
    bits: int,
    clip_ratio: float,
    clip_ends: Tensor | None,
    symmetric: bool,
) -> Tensor:
    """Subtract, transform and quantize every token.

    Args:
        x: float ``(tokens, width)``; the arithmetic runs in float32 or wider.
        mean: ``(width,)``, subtracted first, or ``None``.
        rotations: see :func:`duquant.ops.dual_transform.transform_rows_in_steps`.
        permutations: likewise.
        bits: see :func:`duquant.ops.quantized_tokens.quantize_tokens`, also what follows.
        clip_ratio: factor on both ends of every token's range.
        clip_ends: factors on maximum and minimum, in the place of the ratio.
        symmetric: centre the range on zero.

    Returns:
        ``uint8 (tokens, width + 6)``, rows of :mod:`duquant.ops.quantized_tokens`.
    """
    x = widen(x)
    x = x if mean is None else x - mean.to(x.dtype)
    transformed = transform_rows_in_steps(x, rotations, permutations)
    return quantize_tokens_in_steps(transformed, bits, clip_ratio, clip_ends, symmetric)


transformed_tokens = torch.library.custom_op(
    "duquant::transformed_tokens", transformed_tokens_in_steps, mutates_args=()
)


@transformed_tokens.register_fake
def _(
    x: Tensor,
    mean: Tensor | None,
    rotations: Tensor,
    permutations: Tensor,
    bits: int,
    clip_ratio: float,
    clip_ends: Tensor | None,
    symmetric: bool,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] + GRID_BYTES, dtype=torch.uint8)


def transformed_values_in_steps(
    x: Tensor, rotation: Tensor | None, bits: int, clip_ratio: float, symmetric: bool
) -> Tensor:
    """Rotate every row, quantize it and dequantize it.

    Args:
        x: float ``(..., width)``; the arithmetic runs in float32 or wider.
        rotation: ``(b, b)``, applied to every ``b`` channels, or ``None``.
        bits: width of the integers, at most 8.
        clip_ratio: factor on both ends of every row's range.
        symmetric: centre the range on zero.

    Returns:
        Shape and dtype of ``x``, contiguous.
    """
    wide = widen(x).contiguous()
    rotated = wide if rotation is None else transform_rows_in_steps(wide, *rotation_alone(rotation))
    clip = {"clip_high": clip_ratio, "clip_low": clip_ratio}
    values = fake_quantize(rotated, bits, symmetric=symmetric, **clip).to(x.dtype)
    return values.clone() if values is x else values


transformed_values = torch.library.custom_op(
    "duquant::transformed_values", transformed_values_in_steps, mutates_args=()
)


@transformed_values.register_fake
def _(x: Tensor, rotation: Tensor | None, bits: int, clip_ratio: float, symmetric: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
