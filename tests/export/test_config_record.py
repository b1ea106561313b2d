"""An edited configuration does not load silently: every field that decides a number is compared."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from duquant.export.config_record import HARMLESS, require_recorded
from duquant.export.conversion import QuantizedSource
from tests.quantized_directory import QuantizedDirectory, logits, write_quantized
from tests.tiny_models import FAMILIES, token_ids

IDS = token_ids()
CONFIG = "config.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> QuantizedDirectory:
    return write_quantized(tmp_path_factory.mktemp("smollm3"), FAMILIES["smollm3"])


@pytest.fixture
def copied(written: QuantizedDirectory, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written.path, tmp_path / "copied"))


def read(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / CONFIG).read_text())
    return config


def write(directory: Path, config: dict[str, Any]) -> None:
    (directory / CONFIG).write_text(json.dumps(config))


def edited(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return {**value, "factor": 2.0}
    if isinstance(value, list):
        return [edited(value[0]), *value[1:]]
    if isinstance(value, int | float):
        return value + 1
    return 4 if value is None else f"{value}_"


def test_every_field_of_the_configuration_is_recorded_or_harmless(
    written: QuantizedDirectory,
) -> None:
    config = read(written.path)
    record = config["quantization_config"]["model_config"]
    assert not record.keys() & HARMLESS
    assert config.keys() <= record.keys() | HARMLESS
    deciding = {"rms_norm_eps", "hidden_act", "rope_parameters", "no_rope_layers", "layer_types"}
    assert deciding <= record.keys()


def test_every_recorded_field_that_is_edited_is_refused_by_its_name(
    written: QuantizedDirectory, copied: Path
) -> None:
    """The comparison itself, for all of them; sizes are refused by the shapes of tensors first."""
    config, file = read(copied), copied / CONFIG
    record = config["quantization_config"]["model_config"]
    understood = AutoConfig.from_pretrained(copied)
    require_recorded(record, understood, file)
    for name, value in record.items():
        changed = {**record, name: edited(value)}
        with pytest.raises(ValueError, match=f"{name} is .*; the model was quantized with") as told:
            require_recorded(changed, understood, file)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rms_norm_eps", 1e-3),
        ("hidden_act", "gelu"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5e5}),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 2e6, "factor": 4.0}),
        ("no_rope_layers", [1, 1]),
        ("tie_word_embeddings", True),
        ("sliding_window", 4),
        ("max_position_embeddings", 4096),
        ("no_such_field", 1),
        ("logits_scaling", 2.0),
    ],
)
def test_an_edited_or_added_field_does_not_load(field: str, value: Any, copied: Path) -> None:
    write(copied, {**read(copied), field: value})
    with pytest.raises(ValueError, match=rf"config\.json: {field} is ") as told:
        AutoModelForCausalLM.from_pretrained(copied)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("field", ["rms_norm_eps", "rope_parameters", "no_rope_layers"])
def test_a_removed_field_does_not_load(field: str, copied: Path) -> None:
    """transformers takes another value for granted than the model has."""
    config = read(copied)
    config["quantization_config"]["model_config"] |= {"rms_norm_eps": 1e-4, "no_rope_layers": []}
    config["quantization_config"]["model_config"]["rope_parameters"] = {"rope_theta": 7.0}
    write(copied, {name: value for name, value in config.items() if name != field})
    with pytest.raises(ValueError, match=r"is .*; the model was quantized with"):
        AutoModelForCausalLM.from_pretrained(copied)


def test_a_configuration_that_is_given_is_compared_too(copied: Path) -> None:
    with pytest.raises(ValueError, match=r"rms_norm_eps is 0\.25; the model was quantized with"):
        AutoModelForCausalLM.from_pretrained(copied, rms_norm_eps=0.25)


@pytest.mark.parametrize("field", sorted(HARMLESS - {"quantization_config", "auto_map"}))
def test_a_harmless_field_may_change(field: str, written: QuantizedDirectory, copied: Path) -> None:
    values: dict[str, Any] = {"dtype": "bfloat16", "torch_dtype": "bfloat16", "use_cache": False}
    values |= {"architectures": ["LlamaForCausalLM"], "id2label": {"0": "a"}, "label2id": {"a": 0}}
    values |= {"transformers_version": "6.0.0", "attn_implementation": "eager"}
    values |= {"problem_type": "regression", "return_dict": True, "attention_dropout": 0.5}
    values |= {"initializer_range": 0.5}
    write(copied, {**read(copied), field: values.get(field, 1)})
    require_recorded(
        read(copied)["quantization_config"]["model_config"],
        AutoConfig.from_pretrained(copied),
        copied / CONFIG,
    )


def test_older_directories_without_a_record_load(written: QuantizedDirectory, copied: Path) -> None:
    config = read(copied)
    del config["quantization_config"]["model_config"]
    config["quantization_config"]["format_version"] = 2
    write(copied, config)
    again = AutoModelForCausalLM.from_pretrained(copied)
    assert torch.equal(logits(again, IDS), logits(written.load(), IDS))
    again.save_pretrained(copied.parent / "saved")
    assert read(copied.parent / "saved")["quantization_config"]["model_config"]


@pytest.mark.parametrize("left", [{}, {"model_config": None}])
def test_a_record_that_is_gone_is_refused(left: dict[str, None], copied: Path) -> None:
    """Without it an edited field would load silently."""
    config = read(copied)
    del config["quantization_config"]["model_config"]
    config["quantization_config"] |= left
    write(copied, {**config, "rms_norm_eps": 0.25})
    for load in (AutoModelForCausalLM.from_pretrained, QuantizedSource):
        with pytest.raises(ValueError, match="no model_config, which format version 3 always has"):
            load(copied)


def test_an_edited_configuration_is_not_exported(copied: Path) -> None:
    write(copied, {**read(copied), "rms_norm_eps": 0.25})
    with pytest.raises(ValueError, match=r"rms_norm_eps is 0\.25; the model was quantized with"):
        QuantizedSource(copied)


@pytest.mark.parametrize("record", [[], "llama", 3])
def test_a_damaged_record_is_refused(record: Any, copied: Path) -> None:
    config = read(copied)
    config["quantization_config"]["model_config"] = record
    write(copied, config)
    with pytest.raises(ValueError, match="damaged model_config"):
        AutoModelForCausalLM.from_pretrained(copied)


@pytest.mark.parametrize("family", ["llama-tied", "gemma", "qwen2-mixed-layers"])
def test_what_is_saved_again_is_recorded_again(family: str, tmp_path: Path) -> None:
    written = write_quantized(tmp_path, FAMILIES[family])
    model = written.load(dtype=torch.bfloat16, attn_implementation="eager")
    model.save_pretrained(tmp_path / "saved")
    first, second = (
        read(path)["quantization_config"]["model_config"]
        for path in (written.path, tmp_path / "saved")
    )
    assert {name: first[name] for name in second} == second
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    model.set_attn_implementation("sdpa")
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    deliberate = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    deliberate.config.rms_norm_eps = 0.25
    deliberate.save_pretrained(tmp_path / "other")
    AutoModelForCausalLM.from_pretrained(tmp_path / "other")
