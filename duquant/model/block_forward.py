"""One decoder block on hidden states that lie on the CPU, a few sequences at a time."""

import torch
from torch import Tensor, nn

from duquant.model.decoder import BlockContext

TOKENS_AT_ONCE = 4096
"""Tokens that go through a block together."""


def run_block(block: nn.Module, x: Tensor, context: BlockContext, device: torch.device) -> Tensor:
    """One block's output ``(batch, tokens, hidden)``, computed on ``device``, kept on the CPU."""
    output: Tensor = block(x.to(device), **context)
    return output.cpu()
