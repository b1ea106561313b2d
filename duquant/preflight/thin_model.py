"""A thin sample of a model: one block, of the same kind, as narrow as still tells its speed.

Products of large matrices take time in proportion to their size, so the speed of a block of 1024
channels, which takes no time to measure, tells that of one of 8192. What does not grow with the
square of the width (activations, calls) weighs more in the thin block, so long times come out a
little too long. Models that are narrow already are measured in their own width, and so are all on a
GPU: there a thin block takes as long as a wide one, because it waits for its calls.
"""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from duquant.atomic_files import write_tensors
from duquant.config import Recipe
from duquant.model.checkpoint import WEIGHTS
from duquant.model.decoder import Decoder

WIDEST = 1280
"""Channels of a thin block, where the model's heads allow it."""
VOCABULARY = 512


def write_thin_model(
    directory: Path, decoder: Decoder, recipe: Recipe, *, whole: bool = False
) -> Decoder:
    """Write such a model with random weights into ``directory`` and open it.

    Args:
        directory: an empty one.
        decoder: the model.
        recipe: how it is quantized.
        whole: leave the block as wide as it is.
    """
    config = thin_config(decoder.config, recipe, whole=whole)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=decoder.dtype)
    config.save_pretrained(directory)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    weights = {name: value for name, value in model.state_dict().items() if name not in tied}
    write_tensors(directory / WEIGHTS, weights)
    return Decoder(str(directory), decoder.dtype)


def thin_config(config: Any, recipe: Recipe, *, whole: bool = False) -> Any:
    """The configuration of one block, thinner by a divisor of its heads."""
    thin = copy.deepcopy(config)
    unit = _unit(recipe)
    divisor = 1 if whole else _divisor(config, unit)
    heads = config.num_attention_heads // divisor
    groups = max(1, getattr(config, "num_key_value_heads", heads) // divisor)
    thin.update(
        {
            "hidden_size": config.hidden_size // divisor,
            "intermediate_size": max(1, round(config.intermediate_size / divisor / unit)) * unit,
            "num_attention_heads": heads,
            "num_key_value_heads": groups if heads % groups == 0 else heads,
            "num_hidden_layers": 1,
            "vocab_size": min(config.vocab_size, VOCABULARY),
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }
    )
    for name in ("layer_types", "no_rope_layers"):
        if getattr(config, name, None):
            setattr(thin, name, getattr(config, name)[:1])
    return thin


def _unit(recipe: Recipe) -> int:
    """What widths must be multiples of."""
    block = 1 if recipe.rotation.selector == "none" else recipe.rotation.block_size
    groups = (form.group_size or 1 for form in recipe.formats[:2])
    return math.lcm(block, *groups)


def _divisor(config: Any, unit: int) -> int:
    """The smallest divisor that makes the model thin enough, else the largest that fits."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    fitting = [d for d in range(1, heads + 1) if not (heads % d or hidden % (d * unit))]
    thin = [d for d in fitting if hidden // d <= WIDEST]
    return min(thin) if thin else max(fitting, default=1)
