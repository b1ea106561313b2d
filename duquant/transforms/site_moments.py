"""What a transform may know of its site beside the calibration mean: tokens and weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from duquant.ops.balance import balancing, shrunk
from duquant.ops.rotation import block_rotate

SMALLEST_LENGTH = 1e-12


@dataclass(frozen=True)
class SiteMoments:
    """Tokens of a site and the weights that read it.

    Attributes:
        tokens: float32 ``(tokens, width)``, smoothed; each is divided by the length of what the
            weights make of it, so that massive tokens count as much as others.
        weight: float32 ``(out, width)``, all linears of the site, smoothed.
        sum_up: adds up a tensor over all processes.
    """

    tokens: Tensor
    weight: Tensor
    sum_up: Callable[[Tensor], Tensor]

    @classmethod
    def of(
        cls, tokens: Tensor, weight: Tensor, sum_up: Callable[[Tensor], Tensor]
    ) -> "SiteMoments":
        """Of tokens as they come."""
        lengths = (tokens @ weight.t()).norm(dim=-1, keepdim=True)
        shares = torch.where(lengths > SMALLEST_LENGTH, tokens / lengths, 0)
        return cls(shares, weight, sum_up)

    def balanced_blocks(self, size: int) -> Tensor:
        """Blocks ``(width / size, size, size)`` that balance tokens and weights, in float32.

        They are scaled together so that their mean square entry is that of rotations.
        """
        count = float(self.sum_up(torch.tensor(float(len(self.tokens)), device="cpu")))
        tokens = shrunk(self.sum_up(_moments(self.tokens, size)), count)
        blocks = balancing(tokens, _moments(self.weight, size))
        scale = (blocks.square().sum() / (len(blocks) * size)).sqrt()
        return (blocks / scale).float()

    def behind(self, blocks: Tensor, permutation: Tensor | None) -> "SiteMoments":
        """Behind ``blocks`` and a permutation of the channels."""
        inverse = torch.linalg.inv(blocks.double()).transpose(-1, -2).float()
        tokens, weight = block_rotate(self.tokens, blocks), block_rotate(self.weight, inverse)
        if permutation is not None:
            tokens, weight = tokens[:, permutation], weight[:, permutation]
        return SiteMoments(tokens, weight, self.sum_up)


def _moments(rows: Tensor, size: int) -> Tensor:
    """``Σ xᵀx`` of every block of channels, float64 ``(width / size, size, size)``."""
    blocks = rows.unflatten(-1, (-1, size)).transpose(0, 1)
    return torch.bmm(blocks.transpose(-1, -2), blocks).double()
