"""What a block trains on: the type in which data and modules meet."""

from typing import NamedTuple

from torch import Tensor


class BlockBatch(NamedTuple):
    """Samples of the current turn.

    Attributes:
        quantized_input: the block's input on the quantized stream, ``(batch, tokens, hidden)``; of
            the whole model the token ids, ``(batch, tokens)``.
        target: the full-precision block's output on the full-precision stream, ``(batch, tokens,
            hidden)``; of the whole model that of its last block.
        augmented_target: the full-precision block's output on the quantized stream; empty unless
            the augmented loss asks for it.
    """

    quantized_input: Tensor
    target: Tensor
    augmented_target: Tensor
