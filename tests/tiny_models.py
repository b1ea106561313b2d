"""Tiny random models of every family, written to disk as transformers would.

Fresh models have zero biases and unit norms, which would hide a forgotten one: every parameter is
drawn anew from a seed, and a few norm channels are large so that activations have outliers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 97
SLIDING_WINDOW = 8
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Widths 64 and 96: blocks and groups of 16 or 32 divide all of them."""

FAMILIES: Mapping[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 4},
    "llama-grouped": {"model_type": "llama"},
    "llama-multi-query": {"model_type": "llama", "num_key_value_heads": 1},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-head-24": {"model_type": "llama", "head_dim": 24},
    "llama-head-80": {"model_type": "llama", "head_dim": 80, "num_attention_heads": 2},
    "mistral-sliding": {"model_type": "mistral", "sliding_window": SLIDING_WINDOW},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-mixed-layers": {
        "model_type": "qwen2",
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": SLIDING_WINDOW,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "gemma": {"model_type": "gemma", "head_dim": 16},
    "granite": {
        "model_type": "granite",
        "logits_scaling": 3.0,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 2},
}
"""What sets each family apart; every one must be handled."""

REFUSED: Mapping[str, dict[str, Any]] = {
    "gemma2": {"model_type": "gemma2", "head_dim": 16},
    "phi3": {"model_type": "phi3"},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 2},
    "olmo": {"model_type": "olmo"},
    "olmo2": {"model_type": "olmo2"},
    "stablelm": {"model_type": "stablelm"},
    "cohere": {"model_type": "cohere"},
    "gpt2": {"model_type": "gpt2", "n_head": 4, "n_embd": 64, "n_layer": 2},
}
"""Blocks that compute something else, however alike their names are."""


def tiny_model(options: Mapping[str, Any], *, seed: int = 0) -> Any:
    """A model of random weights in float32."""
    settings = {**SIZES, **options}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            values *= parameter.shape[-1] ** -0.5
        elif "norm" in name:
            values = 1 + 0.2 * values
            if "layernorm" in name:
                values[::23] *= 10
        else:
            values *= 0.5
        parameter.data.copy_(values)
    return model


def write_tiny_model(
    directory: Path, options: Mapping[str, Any], *, seed: int = 0, max_shard_size: str = "1GB"
) -> Path:
    """Write such a model as a directory of safetensors."""
    tiny_model(options, seed=seed).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


def token_ids(batch: int = 2, tokens: int = 24, *, seed: int = 0) -> torch.Tensor:
    """Random ids, longer than every sliding window here."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, tokens), generator=generator)
