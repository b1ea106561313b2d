"""The Triton kernel for what comes after an integer product: one pass over it.

In steps PyTorch passes over the outputs up to seven times, and twice over the integers of the
tokens. A program reads the integers of one token, for their sum, and then its outputs once. Where
tokens are few, several programs share the outputs of a token, and each reads its integers.

Operations are those of the definition in their order, each rounded as IEEE says: results are the
same to the last bit.
"""

import functools

import torch
from torch import Tensor

from duquant.ops.affine import AffineGrid
from duquant.ops.quantized_tokens import GRID_BYTES, encode_tokens
from duquant.ops.scaled_sums import scaled_sums_in_steps
from duquant.ops.triton_kernels.presence import runs_here

TAKEN = (torch.float32, torch.int32)
WRITTEN = (torch.float32, torch.bfloat16, torch.float16)
COLUMNS, BLOCK = 1024, 1024
FEW_TOKENS = 128
"""More of them are enough programs for a GPU."""


def scaled_sums(
    product: Tensor,
    tokens: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """:func:`duquant.ops.scaled_sums.scaled_sums_in_steps` on a GPU."""
    if product.dtype not in TAKEN or not is_available():
        return scaled_sums_in_steps(product, tokens, scale, zero, sums, bias, dtype)
    return _run(product, tokens, (scale, zero, sums, bias), dtype)


@functools.cache
def is_available() -> bool:
    """Whether this machine has the kernel; compiles it when asked for the first time."""
    return runs_here(_is_right)


def _run(
    product: Tensor, tokens: Tensor, columns: tuple[Tensor | None, ...], dtype: torch.dtype
) -> Tensor:
    from duquant.ops.triton_kernels.source import scaled_sums as source

    count, out = product.shape
    rows = [None if row is None else row.float().contiguous() for row in columns]
    assert all(row is None or row.shape == (out,) for row in rows)
    assert tokens.dtype == torch.uint8
    assert len(tokens) == count
    output = product.new_empty(count, out, dtype=dtype if dtype in WRITTEN else torch.float32)
    if output.numel() == 0:
        return output.to(dtype)
    product, tokens = (
        each if each.stride(1) == 1 else each.contiguous() for each in (product, tokens)
    )
    span = COLUMNS if count <= FEW_TOKENS else -(-out // COLUMNS) * COLUMNS
    with torch.cuda.device_of(product):
        source.scale_sums[count, -(-out // span)](
            *(product, tokens, *rows, output, out, tokens.shape[1] - GRID_BYTES),
            *(product.stride(0), tokens.stride(0), span),
            HAS_BIAS=rows[-1] is not None, COLUMNS=COLUMNS, BLOCK=BLOCK,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return output.to(dtype)


def _is_right(device: torch.device) -> bool:
    """Compare a few and many tokens with the definition on the CPU, bit by bit."""
    columns, inputs = COLUMNS + 6, BLOCK + 5
    for rows in (3, FEW_TOKENS + 1):
        counted = torch.arange(rows * columns, dtype=torch.float32, device="cpu")
        product = counted.remainder(8191).view(rows, columns) * 5 - 7000
        column, row = counted[:columns], counted[:rows].view(rows, 1)
        q = counted[: rows * inputs].view(rows, inputs).remainder(256)
        tokens = encode_tokens(q, AffineGrid(row / 7 + 0.1, row - 1))
        scales = column / 3, column - 8, column * 11, column.remainder(5)
        moved = tuple(each.to(device) for each in scales)
        for taken, dtype in ((torch.float32, torch.float32), (torch.int32, torch.float16)):
            expected = scaled_sums_in_steps(product, tokens, *scales, dtype)
            given = product.to(device, taken), tokens.to(device)
            if not torch.equal(_run(*given, moved, dtype).cpu(), expected):
                return False
    return True
