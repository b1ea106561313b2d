"""The skeleton of a model: what ``config.json`` asks for, on the meta device, without memory.

transformers builds some hundred architectures. Which of them duquant can transform is decided by
what they are made of, and all others are refused here, in one line, before anything is read: models
that are no plain decoders, those whose attention cannot be replaced, and configurations out of
which transformers makes nothing at all.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from duquant.model.structure import require_decoder_block
from duquant.nn.attention_quantizer import ATTENTION_NAME
from duquant.plain_text import in_one_line, shortened

LARGEST_SIZES = {
    "num_hidden_layers": 1000,
    "vocab_size": 2**31,
    "hidden_size": 2**31,
    "intermediate_size": 2**31,
    "num_attention_heads": 2**31,
    "num_key_value_heads": 2**31,
    "head_dim": 2**31,
    "max_position_embeddings": 2**31,
}
"""Sizes of a configuration that are whole numbers from 1 up to these."""
PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")
KNOWN = "duquant quantizes decoders built like LLaMA, Mistral and Qwen"


def read_config(directory: Path) -> Any:
    """The configuration of a model directory, as transformers understands it.

    Raises:
        ValueError: if it is none of a plain causal language model in floating point.
    """
    file = directory / "config.json"
    try:
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ValueError(f"{file} cannot be used: {in_one_line(error)}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{directory} holds a model that is quantized already; give the original")
    if not _is_language_alone(config):
        raise ValueError(
            f"{directory}: a {config.model_type} is more than a language model (text_config in "
            f"config.json); {KNOWN}, without vision or speech"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{directory}: a {config.model_type} is no causal language model; {KNOWN}")
    _require_sizes(config, file)
    return config


def build_skeleton(config: Any, dtype: torch.dtype, source: str) -> Any:
    """Build the model without weights and check that duquant can transform it.

    Args:
        config: from :func:`read_config`.
        dtype: dtype of its weights.
        source: where it comes from, for messages.

    Raises:
        ValueError: saying what it lacks or has that is not known.
    """
    try:
        skeleton = _build(config, dtype, ATTENTION_NAME)
    except Exception as error:
        try:
            skeleton = _build(copy.deepcopy(config), dtype, "eager")
        except Exception:
            reason = f"its config.json cannot be used: {in_one_line(error)}"
            raise ValueError(f"{source} ({config.model_type}): {reason}") from error
        require_structure(skeleton, source)
        raise ValueError(
            f"{source}: the attention of a {config.model_type} cannot be replaced; {KNOWN}"
        ) from error
    require_structure(skeleton, source)
    return skeleton


def require_structure(skeleton: Any, source: str) -> None:
    """Check that a model is embeddings, blocks that can be transformed, a norm and a head.

    Raises:
        ValueError: naming what is missing or unknown.
    """
    name = f"{source} ({skeleton.config.model_type})"
    base = getattr(skeleton, "model", None)
    missing = [f"model.{part}" for part in PARTS if not hasattr(base, part)]
    missing += [] if hasattr(skeleton, "lm_head") else ["lm_head"]
    if missing:
        raise ValueError(f"{name} is not a decoder duquant knows: it lacks {', '.join(missing)}")
    unknown = [f"model.{part}" for part, _ in skeleton.model.named_children() if part not in PARTS]
    unknown += [part for part, _ in skeleton.named_children() if part not in ("model", "lm_head")]
    if unknown:
        raise ValueError(f"{name} is not a decoder duquant knows: it has {', '.join(unknown)}")
    for block in skeleton.model.layers:
        require_decoder_block(block, name)


def _build(config: Any, dtype: torch.dtype, attention: str) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention
        ).eval()


def _is_language_alone(config: Any) -> bool:
    try:
        return config.get_text_config() is config
    except ValueError:  # several of them
        return False


def _require_sizes(config: Any, file: Path) -> None:
    for name, largest in LARGEST_SIZES.items():
        size = vars(config).get(name)
        if size is None or isinstance(size, (list, tuple)):  # one per block, in other families
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= largest:
            shown = shortened(repr(size))
            raise ValueError(
                f"{file}: {name} is {shown}; it must be a whole number from 1 to {largest}"
            )
