"""The fields of ``config.json`` that decide a model's numbers, recorded beside its recipe.

Another ``rms_norm_eps`` or rotary base gives another model without any error. So a quantized model
keeps what these fields were, and whoever loads it compares. Everything counts except for fields
that are known to change no logit: how the model is run, what it is called, ids of special tokens,
and what only training reads.

Fields are compared as transformers understands them, since it writes the same configuration in
several ways. What a newer transformers adds by itself is no difference; what somebody added to the
file is one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duquant.json_files import read_json

HARMLESS = {
    "architectures", "attention_dropout", "attn_implementation", "auto_map", "bos_token_id",
    "chunk_size_feed_forward", "dtype", "eos_token_id", "experts_implementation", "hidden_dropout",
    "id2label", "initializer_range", "label2id", "output_attentions", "output_hidden_states",
    "pad_token_id", "problem_type", "quantization_config", "return_dict", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
"""Fields that change no logit; neither do those that begin with an underscore."""
LONGEST_VALUE = 80


def config_record(config: Any, file: Path | None = None) -> dict[str, Any]:
    """Fields that decide numbers, as plain values.

    Args:
        config: a configuration of transformers.
        file: the ``config.json`` it was read from, which may say more; where there is one.
    """
    understood = json.loads(config.to_json_string(use_diff=False))
    return _deciding({**_written(file), **understood})


def require_recorded(record: Mapping[str, Any], config: Any, file: Path) -> None:
    """Check that a configuration decides what it did when it was recorded.

    Args:
        record: from :func:`config_record`.
        config: the configuration a model is about to be built from.
        file: the ``config.json`` beside its weights.

    Raises:
        ValueError: naming the field that differs, its value, and the one that was recorded.
    """
    found = config_record(config, file)
    for name, value in record.items():
        if name in found and found[name] != value:
            raise ValueError(
                f"{file}: {name} is {_shown(found[name])}; the model was quantized with "
                f"{_shown(value)}: put that back, or quantize again"
            )
    for name in _deciding(_written(file)):
        if name not in record:
            raise ValueError(
                f"{file}: {name} is {_shown(found[name])}; the model was quantized without it: "
                f"remove it, or quantize again"
            )


def _written(file: Path | None) -> dict[str, Any]:
    written = read_json(file) if file is not None and file.is_file() else {}
    return written if isinstance(written, dict) else {}


def _deciding(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: fields[name]
        for name in sorted(fields)
        if name not in HARMLESS and not name.startswith("_")
    }


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
