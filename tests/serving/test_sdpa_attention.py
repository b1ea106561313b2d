"""Masks and visible keys are those that transformers makes, for every way to read a sequence."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from tests.serving.served import needs_vllm

pytestmark = [needs_vllm, pytest.mark.filterwarnings("default")]
CPU = torch.device("cpu")
WINDOW = 8


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("num_queries", [1, 2, 7, 8, 9, 20])
@pytest.mark.parametrize("num_before", [0, 1, 6, 7, 8, 9, 30])
def test_masks(num_before: int, num_queries: int, window: int | None) -> None:
    from duquant.serving.sdpa_attention import first_visible, sdpa_mask

    sizes = {"num_hidden_layers": 1, "attn_implementation": "sdpa"}
    config: Any = MistralConfig(sliding_window=window, **sizes) if window else LlamaConfig(**sizes)
    cache = DynamicCache(config=config)
    tokens = torch.zeros(1, 1, num_before, 4, device=CPU)
    if num_before:
        cache.update(tokens, tokens, 0)
    make = create_sliding_window_causal_mask if window else create_causal_mask
    inputs = torch.zeros(1, num_queries, 4, device=CPU)
    expected = make(config, inputs, None, cache)
    new = torch.zeros(1, 1, num_queries, 4, device=CPU)
    keys, _ = cache.update(new, new, 0)
    total = num_before + num_queries
    num_keys = total - first_visible(num_queries, total, window)
    assert num_keys == keys.shape[2]
    found = sdpa_mask(num_queries, num_keys, window, CPU)
    assert (found is None) == (expected is None)
    if found is not None:
        assert torch.equal(found, expected)
