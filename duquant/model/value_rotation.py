"""A Hadamard matrix on the V of every head, folded into the weights around it.

Attention mixes the tokens' V and leaves channels alone, so for an orthogonal ``H``

    softmax(Q Kᵀ) V W_oᵀ = softmax(Q Kᵀ) (V H) (W_o H)ᵀ

with ``V H`` computed by ``v_proj`` (its rows and its bias times ``H``) and ``W_o H`` a change of
``o_proj``'s columns. Outlier channels of V are spread over their head before V is quantized, at no
cost at run time.
"""

import torch
from torch import nn

from duquant.model.structure import ATTENTION
from duquant.ops.hadamard import hadamard_matrix, largest_power_of_two_divisor
from duquant.ops.rotation import block_rotate


@torch.no_grad()
def rotate_values(block: nn.Module, block_size: int) -> None:
    """Fold the rotation into a full-precision block, in place.

    Args:
        block: a decoder block with real weights.
        block_size: largest Hadamard matrix; it has the largest power of two up to this that divides
            a head.
    """
    attention = block.get_submodule(ATTENTION)
    size = largest_power_of_two_divisor(int(attention.head_dim), block_size)  # type: ignore[arg-type]
    value, output = attention.get_submodule("v_proj"), attention.get_submodule("o_proj")
    hadamard = hadamard_matrix(size).to(value.get_parameter("weight").device).unsqueeze(0)
    for parameter in value.parameters(recurse=False):
        rotated = block_rotate(parameter.float().t().contiguous(), hadamard).t()
        parameter.copy_(rotated.to(parameter.dtype))
    weight = output.get_parameter("weight")
    weight.copy_(block_rotate(weight.float(), hadamard).to(weight.dtype))
