"""RoPE and what follows it: Q and K rotated by a Hadamard matrix and quantized, biases added.

In vLLM's models ``q, k = rotary_emb(positions, q, k)`` is the last thing that happens to Q and K
before attention, and the only place where the tokens' positions are known. They are needed for the
biases of Q and K, which stay out of the quantization (:mod:`duquant.nn.attention_bias`). So an
attention module's ``rotary_emb`` is put into this one. What attention writes into the cache is
quantized then, in the model's dtype.
"""

from typing import Any

import torch
from torch import Tensor, nn

from duquant.nn.attention_quantizer import AttentionQuantizer


class QuantizedRotary(nn.Module):
    """Calls RoPE and quantizes what comes out.

    Args:
        rotary: vLLM's rotary embedding, which all layers share.
        quantizer: of this layer's attention.

    Raises:
        ValueError: if biases follow positions that this rotary embedding does not tell.
    """

    def __init__(self, rotary: Any, quantizer: AttentionQuantizer) -> None:
        super().__init__()
        self.rotary = rotary
        self.quantizer = quantizer
        biases = quantizer.biases
        follows = biases is not None and biases.follow_positions
        if follows and not hasattr(rotary, "cos_sin_cache"):
            raise ValueError(f"biases of Q and K cannot follow a {type(rotary).__name__}")

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Quantized Q and K, shapes ``(tokens, heads · head_dim)`` are kept."""
        rotated_query, rotated_key = self.rotary(positions, query, key)
        quantizer, head_dim = self.quantizer, self.quantizer.head_dim
        biases = quantizer.biases
        query_bias = key_bias = None
        if biases is not None:
            query_bias = self._rotated_bias(positions, biases.query)
            key_bias = self._rotated_bias(positions, biases.key)
        query_heads = rotated_query.reshape(1, len(query), -1, head_dim)
        key_heads = rotated_key.reshape(1, len(key), -1, head_dim)
        return (
            quantizer.quantized_query(query_heads, query_bias).view(query.shape),
            quantizer.quantized_key(key_heads, key_bias).view(key.shape),
        )

    def _rotated_bias(self, positions: Tensor, bias: Tensor | None) -> Tensor | None:
        """A bias as RoPE rotates it, float32 ``(1, tokens, heads, head_dim)``."""
        if bias is None:
            return None
        heads = bias.float().view(1, -1, self.quantizer.head_dim)
        size = self.rotary.rotary_dim
        cos_sin = self.rotary.cos_sin_cache.index_select(0, positions.flatten()).float()
        cos, sin = (half.unsqueeze(1) for half in cos_sin.chunk(2, dim=-1))
        turned, still = heads[..., :size], heads[..., size:]
        if self.rotary.is_neox_style:
            first, second = turned.chunk(2, dim=-1)
            parts = (first * cos - second * sin, second * cos + first * sin)
            rotated = torch.cat(parts, dim=-1)
        else:
            first, second = turned[..., ::2], turned[..., 1::2]
            parts = (first * cos - second * sin, second * cos + first * sin)
            rotated = torch.stack(parts, dim=-1).flatten(-2)
        return torch.cat([rotated, still.expand(len(rotated), -1, -1)], dim=-1).unsqueeze(0)
