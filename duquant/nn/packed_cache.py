"""A KV cache of a few bits: K and V are quantized anyway, so that is how they are kept.

Attention quantizes K (rotated by a Hadamard matrix) and V per token and head. An ordinary cache
holds the values that come out (:mod:`duquant.nn.attention_hook`), ``PackedCache`` their bytes (see
:mod:`duquant.formats.row_bytes`): at 4 bits and 128 channels a head, 70 bytes instead of 256. The
attention function recognizes bytes and decodes them, so the results are the same to the last bit.

The layers are transformers' own dynamic ones, with another kind of tensor in them: cropping,
reordering for beams and repeating for batches are theirs.

Where K has a bias (:mod:`duquant.nn.attention_bias`) its integers are of the rest, and the bias is
added when a token is read. That takes the rotation of the token's position, which is the same in
all layers and kept once (:mod:`duquant.nn.cached_rotations`); behind the bytes of K stands its
number.
"""

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from duquant.nn.attention_bias import PositionEmbeddings, Rotation
from duquant.nn.attention_quantizer import AttentionQuantizer
from duquant.nn.cached_rotations import CachedRotations, join_number, split_number
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.ops.gradient import records_gradient


class _PackedLayer(DynamicLayer):
    def __init__(self, quantizer: AttentionQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,
        numbers: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Encode the new tokens and return all, encoded; ``numbers`` are of their rotations."""
        if records_gradient(key_states) or records_gradient(value_states):
            raise ValueError(
                "PackedCache passes no gradient on: train with use_cache=False, and run the model "
                "under torch.no_grad()"
            )
        key, value = self.quantizer.encode(key_states, value_states)
        if numbers is not None:
            key = join_number(key, numbers)
        encoded: tuple[Tensor, Tensor] = super().update(key, value, *args, **kwargs)
        return encoded


class PackedCache(Cache):
    """KV cache of a quantized model; give it to ``generate`` or ``forward`` as ``past_key_values``.

    Models with sliding windows keep every token; their masks hide what lies outside of the window.

    Args:
        model: the quantized model.

    Raises:
        ValueError: if the model does not quantize K and V.
    """

    def __init__(self, model: nn.Module) -> None:
        quantizers = [m for m in model.modules() if isinstance(m, AttentionQuantizer)]
        if not quantizers:
            raise ValueError("PackedCache needs a model quantized by duquant")
        widest = max(max(q.key.form.bits, q.value.form.bits) for q in quantizers)
        if widest >= UNQUANTIZED_BITS:
            raise ValueError(
                "K or V is not quantized; PackedCache holds codes: use transformers' DynamicCache"
            )
        self._quantizer = quantizers[0]
        self._rotations = CachedRotations()
        super().__init__(layers=[_PackedLayer(quantizer) for quantizer in quantizers])

    def update_biased(
        self,
        key: Tensor,
        value: Tensor,
        layer_idx: int,
        positions: PositionEmbeddings | None,
        rotation: Rotation | None,
    ) -> tuple[Tensor, Tensor]:
        """Take in new tokens whose biases stand apart; all come back decoded, biases added.

        Args:
            key: K of the new tokens, ``(batch, heads, tokens, head_dim)``.
            value: V, likewise.
            layer_idx: which attention module they are of.
            positions: cos and sin of the new tokens.
            rotation: what the module does with them.
        """
        layer, dtype, numbers = self.layers[layer_idx], key.dtype, None
        quantizer = layer.quantizer
        rotates = quantizer.biases.key is not None and rotation is not None
        if rotates and positions is not None:
            numbers = self._rotations.add(positions)
        keys, values = layer.update(key, value, numbers=numbers)
        if numbers is not None:
            keys, numbers = split_number(keys)
            positions = self._rotations.at(numbers)
        biases = quantizer.biases(positions, rotation, ("key", "value"))
        decoded = quantizer.decode_key(keys, dtype, biases.key)
        return decoded, quantizer.decode_value(values, dtype, biases.value)

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self._rotations = CachedRotations()

    def describe(self) -> str:
        """Its bits in words, ``packed, K 4 bits, V 4 bits``."""
        key, value = self._quantizer.key.form.bits, self._quantizer.value.form.bits
        return f"packed, K {key} bits, V {value} bits"

    def num_bytes(self) -> int:
        """Bytes the cache takes now."""
        tokens: int = sum(
            tensor.nbytes
            for layer in self.layers
            for tensor in (layer.keys, layer.values)
            if tensor is not None
        )
        return int(tokens) + self._rotations.num_bytes()
