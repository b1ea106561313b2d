"""Zigzag permutation: give every rotation block its fair share of large channels.

A block-diagonal rotation evens out magnitudes inside a block but cannot move anything between
blocks. So channels are sorted by magnitude and dealt out like cards, left to right and then right
to left: block ``1, 2, … K, K, … 2, 1, 1, 2, …`` (DuQuant section 3.3, theorem 2: the spread of
block means is bounded by the largest gap between neighbours in the sorted order). A second rotation
then evens out the new blocks.
"""

from typing import Any

import torch
from torch import Tensor


def zigzag_permutation(magnitude: Tensor, block_size: int) -> Tensor:
    """Order channels so that every block holds large and small ones alike.

    Args:
        magnitude: largest absolute value per channel, shape ``(width,)``.
        block_size: channels of a block; divides ``width``.

    Returns:
        Indices of shape ``(width,)``: ``x[..., permutation]`` is the reordered tensor. Inside a
        block magnitudes descend; equal ones keep their channel order.

    Example:
        >>> import torch
        >>> zigzag_permutation(torch.tensor([1.0, 8.0, 2.0, 7.0, 3.0, 6.0]), block_size=3)
        tensor([1, 4, 2, 3, 5, 0])
    """
    width = magnitude.numel()
    num_blocks = width // block_size
    order = magnitude.argsort(descending=True, stable=True)
    rounds = order.view(block_size, num_blocks).clone()
    rounds[1::2] = rounds[1::2].flip(dims=[1])
    return rounds.t().reshape(width)


def permute_channels(x: Tensor, permutation: Tensor) -> Tensor:
    """``x[..., permutation]``, with a gradient that is a permutation too.

    Autograd would add gradients into zeros, because indices may repeat; these do not.

    Args:
        x: shape ``(..., width)``.
        permutation: of shape ``(width,)``, each channel once; int32 as files hold it, or int64,
            by which every device gathers.
    """
    result: Tensor = _PermuteChannels.apply(x, permutation.long())
    return result


class _PermuteChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, permutation: Tensor) -> Tensor:
        ctx.save_for_backward(permutation)
        return x.gather(-1, permutation.expand(x.shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (permutation,) = ctx.saved_tensors
        return grad.gather(-1, permutation.argsort().expand(grad.shape)), None
