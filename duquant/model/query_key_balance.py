"""Bases for Q and K in which their products lose least to rounding.

``Q Kᵀ`` stays the same if the heads of Q are multiplied by a matrix ``A`` and those of K by
``A⁻ᵀ``. The ``A`` of every head of K, which its heads of Q share, is the one that balances their
second moments (:mod:`duquant.ops.balance`), measured behind RoPE on calibration samples and
followed by the Hadamard matrix. It takes the place of the Hadamard matrix alone and costs as much.

The softmax ignores what all keys of a query have in common, so for the noise of Q it is the
covariance of K that counts. Biases that are added behind the rounding count where Q and K multiply
the other's noise, and not where they are rounded.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from duquant.model.structure import ATTENTION
from duquant.model.surgery import QuantizedBlock
from duquant.nn.attention_bias import RotatedBiases
from duquant.nn.attention_quantizer import AttentionQuantizer
from duquant.ops.balance import balancing, shrunk
from duquant.processes import ALONE, Processes


class _AttentionIsReachedError(Exception):
    """Stops a block behind whose attention nobody looks."""


class _Moments:
    """Sums over the tokens of a block: of Q ``(heads, d, d)``, likewise of K, and K's mean."""

    def __init__(self) -> None:
        self.query: Tensor | float = 0.0
        self.key: Tensor | float = 0.0
        self.key_total: Tensor | float = 0.0
        self.tokens = 0.0

    def add(self, query: Tensor, key: Tensor, biases: RotatedBiases) -> None:
        """Add Q and K of a few samples, ``(batch, heads, tokens, d)``, biases standing apart."""
        query, key = query.double(), key.double()
        num_heads = key.shape[1]
        whole_query = query if biases.query is None else query + biases.query
        whole_key = key if biases.key is None else key + biases.key
        self.query = self.query + _squares(query, num_heads) + _squares(whole_query, num_heads)
        self.key = self.key + _squares(key, num_heads) + _squares(whole_key, num_heads)
        self.key_total = self.key_total + whole_key.sum(dim=(0, 2))
        self.tokens += key.shape[0] * key.shape[2]


@torch.no_grad()
def balance_queries_and_keys(
    quantized: QuantizedBlock,
    forward: Callable[[Tensor], Tensor],
    samples: Callable[[], Iterable[Tensor]],
    processes: Processes = ALONE,
) -> None:
    """Give a block's attention the balanced bases, in place.

    Args:
        quantized: block whose transforms are installed.
        forward: runs the block.
        samples: gives its inputs ``(batch, tokens, hidden)``, on its device.
        processes: who has the other samples.
    """
    quantizer = quantized.layer.get_submodule(ATTENTION).attention_quantizer
    assert isinstance(quantizer, AttentionQuantizer)
    if not (quantizer.query.is_quantized or quantizer.key.is_quantized):
        return
    moments = _Moments()

    def look(_: nn.Module, inputs: tuple[Tensor, Tensor, Tensor, RotatedBiases]) -> None:
        query, key, _value, biases = inputs
        moments.add(query, key, biases)
        raise _AttentionIsReachedError

    handle = quantizer.register_forward_pre_hook(look)
    try:
        for chunk in samples():
            try:
                forward(chunk)
            except _AttentionIsReachedError:
                continue
    finally:
        handle.remove()
    quantizer.balance(*_bases(moments, quantizer, processes))


def _bases(
    moments: _Moments, quantizer: AttentionQuantizer, processes: Processes
) -> tuple[Tensor, Tensor]:
    """What Q and K are multiplied by, float32 ``(heads of K, d, d)`` each."""
    assert isinstance(moments.query, Tensor)
    assert isinstance(moments.key, Tensor)
    assert isinstance(moments.key_total, Tensor)
    query, key, total = (
        processes.sum(each) for each in (moments.query, moments.key, moments.key_total)
    )
    tokens = float(processes.sum(torch.tensor(moments.tokens, device="cpu")))
    mean = total / tokens
    covariance = key - tokens * mean[:, :, None] * mean[:, None, :]
    query, covariance = shrunk(query, tokens), shrunk(covariance, tokens)
    base = quantizer.spread(balancing(query, covariance))
    return base.float(), torch.linalg.inv(base).transpose(-1, -2).float()


def _squares(heads: Tensor, num_heads: int) -> Tensor:
    """``Σ xᵀx`` by head of K, over the heads of Q that share it, ``(heads of K, d, d)``."""
    grouped = heads.unflatten(1, (num_heads, -1)).transpose(0, 1).flatten(1, -2)
    squares: Tensor = grouped.transpose(-1, -2) @ grouped
    return squares
