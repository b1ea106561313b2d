"""Attention whose biases stand apart: who tells it the positions, and what a cache receives.

The attention function is called after RoPE, with Q of the new tokens and K of all that are cached,
and knows the position of none. So a hook in front of the attention module reads the
``position_embeddings`` of the new tokens, rotates the biases (:mod:`duquant.nn.attention_bias`),
and hands them on as one more keyword argument. Their K has to be quantized on the way into the
cache: later nobody knows which position a cached token had, by which frequencies, or in which order
beams were put since. So for the time of a forward pass the hook puts a :class:`BiasingCache` in
front of the model's cache. An ordinary cache then holds quantized K and V, biases added; a
:class:`~duquant.nn.packed_cache.PackedCache` holds integers and the number of every token's
rotation.

Without biases no hook is installed and nothing here runs.
"""

from typing import Any

from torch import Tensor, nn

from duquant.nn.attention import BIASES
from duquant.nn.attention_bias import PositionEmbeddings, RotatedBiases, rotation_of
from duquant.nn.attention_quantizer import AttentionQuantizer
from duquant.nn.packed_cache import PackedCache


class BiasingCache:
    """Stands in front of a cache for one forward pass of one attention module.

    Args:
        cache: the model's cache.
        attention: the module.
        biases: of the new tokens.
        positions: of the new tokens.
    """

    def __init__(
        self,
        cache: Any,
        attention: nn.Module,
        biases: RotatedBiases,
        positions: PositionEmbeddings | None,
    ) -> None:
        self._cache = cache
        self._attention = attention
        self._biases = biases
        self._positions = positions

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take in new tokens, biases left out; all tokens come back, quantized, biases added."""
        quantizer = self._attention.attention_quantizer
        assert isinstance(quantizer, AttentionQuantizer)
        if isinstance(self._cache, PackedCache):
            rotation = rotation_of(self._attention)
            return self._cache.update_biased(
                key_states, value_states, layer_idx, self._positions, rotation
            )
        key = quantizer.quantized_key(key_states, self._biases.key)
        value = quantizer.quantized_value(value_states, self._biases.value)
        updated: tuple[Tensor, Tensor] = self._cache.update(key, value, layer_idx, *args, **kwargs)
        return updated

    def __getattr__(self, name: str) -> Any:
        """Everything else is the cache's."""
        return getattr(self._cache, name)


def bring_biases(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook of an attention module with biases.

    Raises:
        ValueError: if it is not told the positions.
    """
    quantizer = attention.attention_quantizer
    assert isinstance(quantizer, AttentionQuantizer)
    assert quantizer.biases is not None
    if quantizer.biases.follow_positions and "position_embeddings" not in kwargs:
        raise ValueError(f"{type(attention).__name__} was called without position_embeddings")
    positions = kwargs.get("position_embeddings")
    biases: RotatedBiases = quantizer.biases(positions, rotation_of(attention))
    cache = kwargs.get("past_key_values")
    if cache is not None:
        cache = BiasingCache(cache, attention, biases, positions)
    arrives = (biases, cache is not None)
    return args, {**kwargs, "past_key_values": cache, BIASES: arrives}
