"""Which models are refused, and that it always takes one line: every architecture, every size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from duquant.model.checkpoint import WEIGHTS
from duquant.model.decoder import Decoder
from duquant.model.skeleton import LARGEST_SIZES
from tests.tiny_models import FAMILIES, SIZES, write_tiny_model

TYPES = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})
ACCEPTED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "granite", "smollm3"}
NOTABLE = {
    "bloom", "deepseek_v3", "falcon", "flint", "gemma3", "git", "gpt_oss", "granite_swa", "llama4",
    "llava", "mamba", "mllama", "mt5", "musicgen", "paligemma", "phi4_multimodal", "pixtral",
    "qwen2_5_vl", "qwen2_vl", "whisper", "xlnet",
}  # fmt: skip
"""Attention by name, attention sinks, several rotary embeddings, images, sound, no attention."""
EVERY = 9
LONGEST_LINE = 400


def write_config(directory: Path, fields: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def assert_refused(directory: Path) -> str:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        Decoder(str(directory), torch.float32)
    message = str(refused.value)
    assert 0 < len(message) < LONGEST_LINE, message
    assert message.isprintable(), message
    return message


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", sorted({*TYPES[::EVERY], *(NOTABLE & {*TYPES}), *ACCEPTED}))
def test_every_architecture_is_accepted_or_refused_in_one_line(
    model_type: str, tmp_path: Path
) -> None:
    """The weights are of none of them, so those that are accepted miss their own."""
    write_config(tmp_path, {**SIZES, "model_type": model_type})
    save_file({"some.weight": torch.ones(1)}, tmp_path / WEIGHTS)
    message = assert_refused(tmp_path)
    if model_type in ACCEPTED:
        assert "the weights lack model.embed_tokens.weight" in message


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("falcon", ["(falcon)", "it lacks model.embed_tokens"]),
        ("llava", ["a llava is more than a language model", "without vision or speech"]),
        ("qwen2_vl", ["a qwen2_vl is more than a language model"]),
        ("gemma3", ["a gemma3 is more than a language model"]),
        ("t5", ["a t5 is no causal language model"]),
    ],
)
def test_the_reason_is_the_right_one(model_type: str, words: list[str], tmp_path: Path) -> None:
    write_config(tmp_path, {"model_type": model_type})
    save_file({"some.weight": torch.ones(1)}, tmp_path / WEIGHTS)
    message = assert_refused(tmp_path)
    for word in words:
        assert word in message


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("llama"), FAMILIES["llama-grouped"])


def with_fields(llama: Path, directory: Path, **fields: Any) -> Path:
    config = json.loads((llama / "config.json").read_text())
    write_config(directory, {**config, **fields})
    (directory / WEIGHTS).symlink_to(llama / WEIGHTS)
    return directory


@pytest.mark.parametrize("name", LARGEST_SIZES)
@pytest.mark.parametrize(
    "value", [-1, 0, 2**62, "64", 1.5, True, []], ids=lambda value: repr(value)
)
def test_a_size_that_is_none_is_refused_by_its_name(
    name: str, value: Any, llama: Path, tmp_path: Path
) -> None:
    message = assert_refused(with_fields(llama, tmp_path, **{name: value}))
    assert name in message or "config.json" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_act": "no_such_function"},
        {"hidden_act": 7},
        {"rope_parameters": {"rope_type": "no_such_rope", "rope_theta": 1e4}},
        {"num_attention_heads": 7},
        {"layer_types": ["no_such_layer", "x"]},
        {"auto_map": {"AutoConfig": "module.Config"}, "model_type": "no-such-model"},
        {"architectures": 3, "model_type": 3},
        {"text_config": {"model_type": "llama"}, "model_type": "llava"},
        {"quantization_config": {"quant_method": "no_such_method"}},
    ],
    ids=lambda fields: ", ".join(fields),
)
def test_whatever_transformers_stumbles_over_is_one_line(
    fields: dict[str, Any], llama: Path, tmp_path: Path
) -> None:
    assert_refused(with_fields(llama, tmp_path, **fields))
