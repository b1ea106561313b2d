"""What becomes of the exact sums of a linear layer of integers: zero points, scales, bias, dtype.

The formula is that of :mod:`duquant.ops.integer_product`. Whatever multiplied, this is one operator
with one order of operations, so the result depends on no kernel. Done in steps it passes over the
outputs eight times, which takes longer than the product itself where the processor has AMX; the
kernels that :mod:`duquant.ops.kernels.table` lists pass once.
"""

import torch
from torch import Tensor

from duquant.ops.quantized_tokens import decode_tokens


def scaled_sums_in_steps(
    product: Tensor,
    tokens: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Correct, scale and convert the sums of encoded tokens.

    Args:
        product: ``Σ q_x q'_w``, float32 or int32 ``(rows, out)``; it is rounded to float32 first.
        tokens: rows of :mod:`duquant.ops.quantized_tokens`, ``uint8 (rows, in + 6)``.
        scale: ``s_w`` of every weight row, ``(out,)``.
        zero: ``z'_w``, likewise.
        sums: ``Σ (q'_w − z'_w)``, likewise.
        bias: likewise, or ``None``.
        dtype: of the result.

    Returns:
        ``(rows, out)``, computed in float32.
    """
    q, grid = decode_tokens(tokens)
    of_tokens = q.sum(dim=-1, keepdim=True, dtype=torch.int32).float()
    correction = grid.zero * sums.float() + of_tokens * zero.float()
    output = (product - correction).mul_(scale.float()).mul_(grid.scale)
    if bias is not None:
        output.add_(bias.float())
    return output.to(dtype)


scaled_sums = torch.library.custom_op("duquant::scaled_sums", scaled_sums_in_steps, mutates_args=())


@scaled_sums.register_fake
def _(
    product: Tensor,
    tokens: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty_like(product, dtype=dtype)
