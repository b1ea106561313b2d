"""Attention in vLLM as transformers computes it: PyTorch's, one sequence after the other.

vLLM's attention kernel for processors adds in another order than PyTorch's
``scaled_dot_product_attention``. In a deep model with activations of 4 bits those last bits turn
roundings over, so the exact mode (:mod:`duquant.serving.exact`) calls the very function that
transformers calls, with what transformers would hand to it: no mask for a whole prompt or a single
token, else a boolean one, and only the keys that a sliding window still shows. Models whose heads
have a size that vLLM's kernel was not written for are served by it too.

K and V lie in vLLM's paged cache, ``(blocks, heads, 2 · block_size, head_dim)``: in each block and
head the keys of its tokens, then their values.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from vllm.v1.attention.backend import AttentionImpl, AttentionMetadataBuilder
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend


@dataclass(frozen=True)
class Sequence:
    """What one sequence of a batch attends to.

    Attributes:
        tokens: its new tokens in the batch.
        blocks: of the cache, that hold its keys, int ``(blocks,)``.
        keys: its keys in these blocks, laid one behind the other.
        mask: bool ``(1, 1, tokens, keys)``, or ``None`` where transformers passes none.
    """

    tokens: slice
    blocks: Tensor
    keys: slice
    mask: Tensor | None


@dataclass(frozen=True)
class SdpaMetadata:
    """A batch, as all layers of a group of vLLM's cache see it.

    Attributes:
        blocks: of the cache, where the new tokens go, int ``(tokens,)``.
        places: in these blocks, likewise.
        sequences: of the batch.
    """

    blocks: Tensor
    places: Tensor
    sequences: list[Sequence]


class SdpaAttentionBackend(CPUAttentionBackend):
    """Stands in for vLLM's attention on processors, under the same name."""

    forward_includes_kv_cache_update: bool = True

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        """All: an empty list in vLLM's words."""
        return []

    @staticmethod
    def get_impl_cls() -> type["SdpaAttention"]:
        """What computes a layer."""
        return SdpaAttention

    @staticmethod
    def get_builder_cls() -> type["SdpaMetadataBuilder"]:
        """What looks at a batch before the layers do."""
        return SdpaMetadataBuilder


class SdpaMetadataBuilder(AttentionMetadataBuilder[SdpaMetadata]):
    """Cuts a batch into its sequences, once for all layers that share a window.

    Args:
        kv_cache_spec: of the layers' cache.
        layer_names: the layers.
        vllm_config: all options.
        device: of the batch.
    """

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        layers = vllm_config.compilation_config.static_forward_context
        windows = {layers[name].sliding_window for name in layer_names}
        if len(windows) > 1:
            raise ValueError(f"layers of one cache have different windows: {windows}")
        (self.window,) = windows

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> SdpaMetadata:
        """Cut the batch that vLLM describes."""
        starts = common_attn_metadata.query_start_loc.tolist()
        lengths = common_attn_metadata.seq_lens.tolist()
        size = self.kv_cache_spec.block_size
        table = common_attn_metadata.block_table_tensor
        sequences = []
        for row, (start, end, length) in enumerate(
            zip(starts[:-1], starts[1:], lengths, strict=True)
        ):
            if start == end:  # a row that fills the batch up
                continue
            first = first_visible(end - start, length, self.window)
            first_block = first // size
            blocks = table[row, first_block : -(-length // size)]
            keys = slice(first - first_block * size, length - first_block * size)
            mask = sdpa_mask(end - start, length - first, self.window, self.device)
            sequences.append(Sequence(slice(start, end), blocks, keys, mask))
        slots = common_attn_metadata.slot_mapping[: starts[-1]]
        return SdpaMetadata(slots // size, slots % size, sequences)


def first_visible(num_queries: int, num_tokens: int, window: int | None) -> int:
    """The first of a sequence's tokens that transformers' cache still holds.

    Args:
        num_queries: new tokens.
        num_tokens: of the sequence, the new ones included.
        window: tokens that one of them sees, itself included; ``None`` for all.
    """
    return 0 if window is None else max(0, num_tokens - num_queries - window + 1)


def sdpa_mask(
    num_queries: int, num_keys: int, window: int | None, device: torch.device
) -> Tensor | None:
    """Which keys the last tokens of a sequence see, and ``None`` where transformers passes none.

    It passes one wherever there are as many keys as the window, even if all of them are seen
    (``transformers.masking_utils.sdpa_mask``).

    Args:
        num_queries: tokens that ask.
        num_keys: tokens that are seen, these included.
        window: as in :func:`first_visible`.
        device: of the mask.

    Returns:
        bool ``(1, 1, num_queries, num_keys)`` or ``None``.
    """
    is_windowed = window is not None and num_keys >= window
    if not is_windowed and num_queries in (1, num_keys):
        return None
    keys = torch.arange(num_keys, device=device)
    queries = keys[num_keys - num_queries :, None]
    mask = keys <= queries
    if window is not None:
        mask &= keys > queries - window
    return mask[None, None]


class SdpaAttention(AttentionImpl[SdpaMetadata]):
    """Attention of one layer, the arguments being those that vLLM gives.

    Args:
        num_heads: of Q on this device.
        head_size: channels of a head.
        scale: what products of Q and K are multiplied by.
        num_kv_heads: of K and V on this device.
    """

    is_causal: ClassVar[bool] = True  # read by transformers' function, as the next one

    def __init__(self, num_heads: int, head_size: int, scale: float, num_kv_heads: int) -> None:
        self.num_heads, self.head_size, self.scale = num_heads, head_size, scale
        self.num_kv_heads = num_kv_heads
        self.num_key_value_groups = num_heads // num_kv_heads

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: SdpaMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Write K and V of new tokens into the cache and attend to all that their sequences see.

        Args:
            layer: vLLM's.
            query: ``(tokens, num_heads, head_size)``.
            key: ``(tokens, num_kv_heads, head_size)``.
            value: likewise.
            kv_cache: ``(blocks, num_kv_heads, block_size, 2 · head_size)``.
            attn_metadata: the batch; ``None`` where vLLM only tries the model out.
            output: as the query; it is written and returned.
            output_scale: not used, as the next one.
            output_block_scale: none of our models quantizes here.
        """
        if attn_metadata is None:
            return output
        blocks, heads, size, _ = kv_cache.shape
        keys, values = kv_cache.view(blocks, heads, 2 * size, -1).chunk(2, dim=2)
        where = (attn_metadata.blocks, slice(None), attn_metadata.places)
        keys[where] = key[: len(attn_metadata.places)]
        values[where] = value[: len(attn_metadata.places)]
        for sequence in attn_metadata.sequences:
            attended, _ = sdpa_attention_forward(
                self,
                query[sequence.tokens].transpose(0, 1).unsqueeze(0),
                _gathered(keys, sequence),
                _gathered(values, sequence),
                sequence.mask,
                scaling=self.scale,
            )
            output[sequence.tokens] = attended[0]
        return output


def _gathered(cache: Tensor, sequence: Sequence) -> Tensor:
    """Keys or values of a sequence, ``(1, heads, keys, head_dim)``."""
    blocks = cache.index_select(0, sequence.blocks)
    return blocks.transpose(0, 1).flatten(1, 2)[:, sequence.keys].unsqueeze(0)


def attend_by_sdpa(layer: Any) -> None:
    """Let one of vLLM's attention layers, just made, compute as transformers does."""
    layer.attn_backend = SdpaAttentionBackend
    layer.impl = SdpaAttention(
        layer.num_heads, layer.head_size, layer.impl.scale, layer.num_kv_heads
    )
