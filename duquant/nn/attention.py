"""Quantized attention: Q, K and V in few bits, without copying any model's attention code.

transformers lets a process register attention functions by name. ``duquant_attention`` quantizes Q,
K and V and hands them to PyTorch's scaled dot product attention; a module without an
``attention_quantizer`` is passed through untouched, so full-precision and quantized blocks can
share one model configuration. The name is registered for masks too: without that transformers would
build no mask for it, and the model would silently see the future.

Q and K are multiplied by a Hadamard matrix along the head dimension after RoPE, which leaves
``Q Kᵀ`` unchanged and spreads their outlier channels. The matrix has the largest power of two that
divides the head dimension (at most ``block_size``), so it never mixes heads or tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from duquant.nn.activation import ActivationQuantizer
from duquant.ops.affine import dequantize
from duquant.ops.hadamard import hadamard_matrix, largest_power_of_two_divisor
from duquant.ops.precision import widen_on_cpu
from duquant.ops.quantized_tokens import decode_tokens, encode_tokens
from duquant.ops.rotation import block_rotate

ATTENTION_NAME = "duquant"


class AttentionQuantizer(nn.Module):
    """Rotate and quantize Q and K, quantize V: per token and per head.

    Args:
        head_dim: channels of a head.
        query_bits: bits of Q; 16 leaves it unquantized.
        key_bits: bits of K.
        value_bits: bits of V.
        clip_ratio: clip factor of Q and K; V is not clipped.
        block_size: largest Hadamard matrix.
        symmetric: centre the ranges on zero.
    """

    hadamard: Tensor

    def __init__(
        self,
        head_dim: int,
        *,
        query_bits: int,
        key_bits: int,
        value_bits: int,
        clip_ratio: float,
        block_size: int,
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.hadamard_size = largest_power_of_two_divisor(head_dim, block_size)
        self.register_buffer("hadamard", hadamard_matrix(self.hadamard_size), persistent=False)
        self.query = ActivationQuantizer(query_bits, clip_ratio, symmetric=symmetric)
        self.key = ActivationQuantizer(key_bits, clip_ratio, symmetric=symmetric)
        self.value = ActivationQuantizer(value_bits, 1.0, symmetric=symmetric)

    def compute_hadamard(self) -> None:
        """Compute the matrix anew, where a model was built without memory for it."""
        self.hadamard = hadamard_matrix(self.hadamard_size).to(self.hadamard.device)

    def rotate(self, heads: Tensor) -> Tensor:
        """Multiply ``(..., head_dim)`` by the block-diagonal Hadamard matrix.

        Half precision becomes float32 on the CPU.
        """
        wide = widen_on_cpu(heads)
        return block_rotate(wide, self.hadamard.to(wide.dtype).unsqueeze(0))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantized Q, K, V; shapes ``(batch, heads, tokens, head_dim)`` are kept.

        K and V may come encoded, out of a :class:`duquant.nn.packed_cache.PackedCache`.
        """
        dtype = query.dtype
        query = self.query(self.rotate(query)).to(dtype)
        if key.dtype == torch.uint8:
            return query, self._decode(key, self.key, dtype), self._decode(value, self.value, dtype)
        return query, self.key(self.rotate(key)).to(dtype), self.value(value)

    def encode(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """K (rotated) and V as bytes, ``(batch, heads, tokens, bytes)``, to be kept in a cache."""
        return self._encode(self.rotate(key), self.key), self._encode(value, self.value)

    def _encode(self, heads: Tensor, quantizer: ActivationQuantizer) -> Tensor:
        return encode_tokens(*quantizer.integers(heads), bits=quantizer.bits)

    def _decode(self, tokens: Tensor, quantizer: ActivationQuantizer, dtype: torch.dtype) -> Tensor:
        q, grid = decode_tokens(tokens, self.head_dim, quantizer.bits)
        return dequantize(q.float(), grid).to(dtype)


def duquant_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention function with transformers' signature; shapes as in ``sdpa_attention_forward``."""
    quantizer = getattr(module, "attention_quantizer", None)
    if quantizer is not None:
        query, key, value = quantizer(query, key, value)
    result: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **kwargs
    )
    return result


def register_attention() -> None:
    """Make ``attn_implementation="duquant"`` known to transformers; calling again is harmless."""
    AttentionInterface.register(ATTENTION_NAME, duquant_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
