"""A Hadamard matrix on the V of every head, folded into the weights around it.

Attention mixes the tokens' V and leaves channels alone, so for an orthogonal ``H``

    softmax(Q Kᵀ) V W_oᵀ = softmax(Q Kᵀ) (V H) (W_o H)ᵀ

with ``V H`` computed by ``v_proj`` (its rows and its bias times ``H``) and ``W_o H`` a change of
``o_proj``'s columns. Outlier channels of V are spread over their head before V is quantized, at no
cost at run time.
"""

import torch
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.model.channel_ranges import SiteViews
from duquant.model.structure import ATTENTION
from duquant.ops.hadamard import hadamard_matrix, largest_power_of_two_divisor
from duquant.ops.rotation import block_rotate

SITE = "attention_output"
"""The site whose channels are those of V."""


def rotated_views(block: nn.Module, recipe: Recipe) -> SiteViews:
    """How sites will see what a block computes now, once its V is rotated as the recipe says."""
    if not recipe.rotation.rotate_values:
        return {}
    hadamard = _hadamard(block, recipe.rotation.block_size)

    def rotated(x: Tensor) -> Tensor:
        return block_rotate(x.float(), hadamard.to(x.device)).to(x.dtype)

    return {SITE: rotated}


@torch.no_grad()
def rotate_values(block: nn.Module, block_size: int) -> None:
    """Fold the rotation into a full-precision block, in place.

    Args:
        block: a decoder block with real weights.
        block_size: largest Hadamard matrix; it has the largest power of two up to this that divides
            a head.
    """
    attention = block.get_submodule(ATTENTION)
    value, output = attention.get_submodule("v_proj"), attention.get_submodule("o_proj")
    hadamard = _hadamard(block, block_size).to(value.get_parameter("weight").device)
    for parameter in value.parameters(recurse=False):
        rotated = block_rotate(parameter.float().t().contiguous(), hadamard).t()
        parameter.copy_(rotated.to(parameter.dtype))
    weight = output.get_parameter("weight")
    weight.copy_(block_rotate(weight.float(), hadamard).to(weight.dtype))


def _hadamard(block: nn.Module, block_size: int) -> Tensor:
    """``(1, size, size)``."""
    head_dim = int(block.get_submodule(ATTENTION).head_dim)  # type: ignore[arg-type]
    return hadamard_matrix(largest_power_of_two_divisor(head_dim, block_size)).unsqueeze(0)
