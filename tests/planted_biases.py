"""Tiny models with a large bias in K, as Qwen2.5 has one.

It is planted where RoPE rotates slowest, so it adds nearly the same to all scores of a query, and
the softmax nearly ignores it. Such a model computes what it computes without the bias, unless
quantization lets the bias take the levels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from duquant.config import Recipe
from tests.quantized_directory import QuantizedDirectory, fitting_recipe, quantize_source
from tests.tiny_models import FAMILIES, tiny_model

LARGE = 300.0
INTERLEAVED = ("helium", "ernie4_5")
"""Families that rotate neighbouring channels; the others, channels half a head apart."""
BIASED: Mapping[str, dict[str, Any]] = {
    "qwen2": FAMILIES["qwen2"],
    "qwen2-mixed-layers": FAMILIES["qwen2-mixed-layers"],
    "llama": {"model_type": "llama", "attention_bias": True},
    "llama-head-24": {"model_type": "llama", "attention_bias": True, "head_dim": 24},
    "gemma": {"model_type": "gemma", "attention_bias": True, "head_dim": 16},
    "granite": {**FAMILIES["granite"], "attention_bias": True},
    "smollm3": {**FAMILIES["smollm3"], "attention_bias": True},
    "seed_oss": {"model_type": "seed_oss", "head_dim": 16, "attention_bias": True},
    "helium": {"model_type": "helium", "head_dim": 16, "attention_bias": True},
    "ernie4_5": {"model_type": "ernie4_5", "head_dim": 16, "use_bias": True},
}
"""Every family that is accepted with biases and without q/k norms."""
THETA = {"rope_theta": 10000.0}
SCALED: Mapping[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0, **THETA},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, **THETA},
    "yarn": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, **THETA
    },
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16, **THETA,
    },
    "longrope": {
        "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
        "factor": 4.0, "original_max_position_embeddings": 16, **THETA,
    },
}  # fmt: skip
"""Ways of scaling RoPE, for heads of 16 channels."""


def biased_model(options: Mapping[str, Any], *, bias: float = LARGE) -> Any:
    """A random model with ``±bias`` in K of every block, on top of its random biases."""
    model = tiny_model(options)
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        heads = attention.k_proj.bias.data.view(-1, attention.head_dim)
        is_interleaved = options["model_type"] in INTERLEAVED
        first = attention.head_dim - 2 if is_interleaved else attention.head_dim // 2 - 1
        heads[:, first] += bias
        heads[:, -1] -= bias * (1 + index) / 2
    return model


def write_biased(
    directory: Path,
    options: Mapping[str, Any],
    *,
    bias: float = LARGE,
    recipe: Recipe | None = None,
    dtype: torch.dtype = torch.float32,
) -> QuantizedDirectory:
    """Write such a model, quantize it block by block and complete its directory."""
    source = directory / "source"
    biased_model(options, bias=bias).save_pretrained(source)
    return quantize_source(source, directory / "model", recipe or fitting_recipe(options), dtype)
