"""Quantized models in other layouts, loaded again by transformers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import duquant
from duquant.check import main as check
from duquant.config import Recipe
from duquant.export.command import export
from duquant.export.conversion import QuantizedSource, export_model
from duquant.export.first_tokens import (
    LOGITS,
    PART,
    first_tokens_checksum,
    read_first_tokens,
)
from duquant.export.targets.dequantized import Dequantized
from duquant.export.targets.native import Native
from tests.block_by_block import small_recipe
from tests.quantized_directory import logits, quantize_source, token_ids, write_quantized
from tests.tiny_models import FAMILIES, write_tiny_model

IDS = token_ids(seed=3)


def weights_alone(recipe: Recipe) -> Recipe:
    return replace(recipe, activation_bits=16, query_bits=16, key_bits=16, value_bits=16)


@pytest.mark.parametrize(
    ("family", "subtract_mean"),
    [
        *((name, False) for name in ("llama-grouped", "llama-tied", "llama-biases", "granite")),
        *((name, False) for name in ("qwen2", "qwen3", "gemma", "smollm3")),
        *((name, True) for name in ("llama-grouped", "llama-tied", "llama-biases", "granite")),
        ("smollm3", True),
    ],
)
@pytest.mark.parametrize("attention_output", ["key_value_channel", "query_channel"])
def test_a_plain_model_computes_what_quantized_weights_do(
    family: str, subtract_mean: bool, attention_output: str, tmp_path: Path
) -> None:
    """With activations in floating point both are the same function, up to rounding."""
    recipe = weights_alone(small_recipe(attention_output=attention_output))
    recipe = replace(recipe, smoothing=replace(recipe.smoothing, subtract_mean=subtract_mean))
    quantized = write_quantized(tmp_path, FAMILIES[family], recipe)
    export_model(QuantizedSource(quantized.path), tmp_path / "plain", Dequantized())
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    expected, found = logits(quantized.load(), IDS), logits(plain, IDS)
    # Every weight was rounded to bfloat16, eight bits of mantissa.
    assert (found - expected).norm() / expected.norm() < 0.03
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32)
    assert (found - expected).norm() < 0.3 * (logits(original, IDS) - expected).norm()


def test_means_go_into_biases_that_attention_adds(tmp_path: Path) -> None:
    """Q, K and V of 8 bits: their biases, and the means' part of them, lie in attention."""
    recipe = replace(weights_alone(small_recipe()), query_bits=8, key_bits=8, value_bits=8)
    recipe = replace(
        recipe,
        smoothing=replace(recipe.smoothing, subtract_mean=True),
        clipping=replace(recipe.clipping, activation_ratio=1.0),
    )
    quantized = write_quantized(tmp_path, FAMILIES["llama-biases"], recipe)
    export_model(QuantizedSource(quantized.path), tmp_path / "plain", Dequantized())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    expected, found = logits(quantized.load(), IDS), logits(plain, IDS)
    assert (found - expected).norm() / expected.norm() < 0.04


def test_a_native_copy_is_the_same_model(tmp_path: Path) -> None:
    quantized = write_quantized(tmp_path, FAMILIES["llama-biases"])
    export_model(QuantizedSource(quantized.path), tmp_path / "copy", Native())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    duquant.set_execution(again, "reference")
    same = quantized.load()
    duquant.set_execution(same, "reference")
    assert torch.equal(logits(again, IDS), logits(same, IDS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_of_an_older_model_gets_its_first_tokens(dtype: torch.dtype, tmp_path: Path) -> None:
    quantized = write_quantized(tmp_path, FAMILIES["llama-biases"], dtype=dtype).path
    expected = read_first_tokens(quantized)
    (quantized / LOGITS).unlink()
    config = json.loads((quantized / "config.json").read_text())
    del config["quantization_config"]["checksums"][PART]
    (quantized / "config.json").write_text(json.dumps(config))
    export(str(quantized), output_dir=str(tmp_path / "copy"))
    found = read_first_tokens(tmp_path / "copy")
    assert (found.prompts, found.tokens) == (expected.prompts, expected.tokens)
    numbers = (torch.tensor(each.log_probabilities) for each in (found, expected))
    torch.testing.assert_close(*numbers, atol=2e-5, rtol=0)  # other sums, five decimals
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    stored = config["quantization_config"]["checksums"]
    assert stored[PART] == first_tokens_checksum(tmp_path / "copy")[PART]
    with pytest.raises(SystemExit) as left:
        check([str(tmp_path / "copy"), "--backend", "reference"])
    assert left.value.code == 0


def test_an_interrupted_export_goes_on(tmp_path: Path) -> None:
    quantized = write_quantized(tmp_path, FAMILIES["llama-tied"])
    source, target = QuantizedSource(quantized.path), tmp_path / "copy"

    class Interrupted(Exception):
        pass

    def interrupt(index: int, count: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        export_model(source, target, Native(), interrupt)
    export_model(source, target, Native())
    for file in target.glob("*.safetensors"):
        whole = load_file(file)
        assert all(tensor.numel() for tensor in whole.values())
    assert AutoModelForCausalLM.from_pretrained(target) is not None


@pytest.mark.parametrize(
    ("family", "lacking"),
    [
        ("qwen2", r"in self_attn.o_proj, mlp.up_proj, mlp.gate_proj, mlp.down_proj;"),
        ("qwen3", r"in mlp.up_proj, mlp.gate_proj, mlp.down_proj;"),
        ("mistral-sliding", r"in self_attn.q_proj, .*, mlp.down_proj;"),
    ],
)
def test_a_plain_model_without_biases_has_no_place_for_means(
    family: str, lacking: str, tmp_path: Path
) -> None:
    recipe = small_recipe()
    recipe = replace(recipe, smoothing=replace(recipe.smoothing, subtract_mean=True))
    quantized = write_quantized(tmp_path, FAMILIES[family], recipe)
    with pytest.raises(ValueError, match=rf"subtract_mean is true, and a plain .* {lacking}"):
        export_model(QuantizedSource(quantized.path), tmp_path / "plain", Dequantized())
    assert not (tmp_path / "plain").exists()
    export_model(QuantizedSource(quantized.path), tmp_path / "copy", Native())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    torch.testing.assert_close(logits(again, IDS), logits(quantized.load(), IDS))


def test_what_is_refused(tmp_path: Path) -> None:
    plain = write_tiny_model(tmp_path / "plain", FAMILIES["llama-tied"])
    with pytest.raises(ValueError, match="holds no model that was quantized by duquant"):
        export(str(plain))
    with pytest.raises(ValueError, match="holds no run with a finished model"):
        export(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="there is no layout 'onnx'; there are native, dequant"):
        export(str(plain), to="onnx")
    quantized = quantize_source(plain, tmp_path / "run" / "model", small_recipe())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty directory"):
        export(str(tmp_path / "run"), output_dir=str(tmp_path / "full"))
    file = next(quantized.path.glob("model-block-00000*"))
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match="block 0 is damaged or altered"):
        export(str(tmp_path / "run"))
