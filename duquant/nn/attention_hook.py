"""What happens in front of a quantized attention module: K and V are quantized on their way in.

The attention function is called with Q of the new tokens and with K and V of all that are cached.
Quantized there, the whole history would be rotated and rounded again at every step, to the same
numbers. So a hook in front of the module puts a :class:`QuantizingCache` before the model's cache
for the time of a forward pass: an ordinary cache then holds quantized K and V, each token rounded
once. (A :class:`~duquant.nn.packed_cache.PackedCache` quantizes by itself, and holds integers.) A
cache that somebody else has filled, as prefix tuning does, holds floats: it keeps them, and what
comes out of it is quantized in attention, every time.

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

MARK = "duquant_holds_quantized"
"""Attribute of a cache all of whose tokens were quantized before they arrived."""


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
        if name == "_cache":  # of a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self._cache, name)


def quantize_before_cache(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook of a quantized attention module.

    Raises:
        ValueError: if biases follow positions that it is not told, or have to be added to tokens
            that somebody else put into the cache.
    """
    quantizer = attention.attention_quantizer
    assert isinstance(quantizer, AttentionQuantizer)
    cache, positions = kwargs.get("past_key_values"), kwargs.get("position_embeddings")
    biases = NO_BIASES
    if quantizer.biases is not None:
        if quantizer.biases.follow_positions and positions is None:
            raise ValueError(f"{type(attention).__name__} was called without position_embeddings")
        biases = quantizer.biases(positions, rotation_of(attention))
    if cache is None:
        return args, {**kwargs, BIASES: (biases, False)}
    is_ours = _holds_quantized(cache, attention)
    if quantizer.biases is None and (isinstance(cache, PackedCache) or not is_ours):
        return args, {**kwargs, BIASES: (biases, False)}
    if not is_ours:
        raise ValueError(
            "the cache holds tokens that this model has not seen, and they lack the biases of its "
            "K and V: begin with an empty cache"
        )
    cache = QuantizingCache(cache, attention, biases, positions)
    return args, {**kwargs, "past_key_values": cache, BIASES: (biases, True)}


def _holds_quantized(cache: Any, attention: nn.Module) -> bool:
    """Whether all tokens of a cache came through here; an empty one is marked as such."""
    if isinstance(cache, PackedCache) or getattr(cache, MARK, False):
        return True
    index, layers = int(attention.layer_idx), cache.layers  # type: ignore[arg-type]
    is_new = index >= len(layers) or not layers[index].is_initialized
    if is_new or int(cache.get_seq_length(index)) == 0:
        setattr(cache, MARK, True)
    return getattr(cache, MARK, False)
