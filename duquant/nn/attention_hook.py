"""What happens in front of a quantized attention module: K and V are quantized on their way in.

The attention function is called with Q of the new tokens and with K and V of all that are cached.
Quantized there, the whole history would be rotated and rounded again at every step, to the same
numbers. So a hook in front of the module puts a :class:`QuantizingCache` before the model's cache
for the time of a forward pass: an ordinary cache then holds quantized K and V, each token rounded
once. (A :class:`~duquant.nn.packed_cache.PackedCache` quantizes by itself, and holds integers.)

Where biases stand apart (:mod:`duquant.nn.attention_bias`) there is another reason. The attention
function is called after RoPE and knows the position of no token; later nobody knows which position
a cached token had, by which frequencies, or in which order beams were put since. So the hook reads
the ``position_embeddings`` of the new tokens, rotates the biases and hands them on as one more
keyword argument; K and V get theirs behind their quantization, on the way into the cache. A
``PackedCache`` holds the number of every token's rotation instead.
"""

from typing import Any

from torch import Tensor, nn

from duquant.nn.attention import BIASES
from duquant.nn.attention_bias import PositionEmbeddings, RotatedBiases, rotation_of
from duquant.nn.attention_quantizer import NO_BIASES, AttentionQuantizer
from duquant.nn.packed_cache import PackedCache


class QuantizingCache:
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


def quantize_on_the_way(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook of a quantized attention module.

    Raises:
        ValueError: if biases follow positions that it is not told.
    """
    quantizer = attention.attention_quantizer
    assert isinstance(quantizer, AttentionQuantizer)
    cache, positions = kwargs.get("past_key_values"), kwargs.get("position_embeddings")
    biases = NO_BIASES
    if quantizer.biases is not None:
        if quantizer.biases.follow_positions and positions is None:
            raise ValueError(f"{type(attention).__name__} was called without position_embeddings")
        biases = quantizer.biases(positions, rotation_of(attention))
    elif cache is None or isinstance(cache, PackedCache):
        return args, kwargs
    if cache is not None:
        cache = QuantizingCache(cache, attention, biases, positions)
    arrives = (biases, cache is not None)
    return args, {**kwargs, "past_key_values": cache, BIASES: arrives}
