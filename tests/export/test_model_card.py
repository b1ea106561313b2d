"""The model card: what somebody learns who is handed the directory alone."""

import json
import re
import shlex
import sys
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from duquant import lm_eval
from duquant.config import LWCConfig, Recipe
from duquant.export.model_card import CARD, size_breakdown, write_model_card
from duquant.export.packed_size import packed_bytes
from duquant.model.structure import linear_shapes
from tests.block_by_block import small_recipe
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun
from tests.quantized_directory import QuantizedDirectory, write_quantized
from tests.tiny_models import FAMILIES

pytestmark = LIGHTNING_WARNINGS
SUMMARY = {
    "perplexity": {
        "wikitext2": {"full_precision": 5.4721, "quantized": 6.2808},
        "c4": {"full_precision": 6.973, "quantized": 7.9},
    },
    "protocol": "non-overlapping windows of 2048 tokens",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> QuantizedDirectory:
    return write_quantized(tmp_path_factory.mktemp("llama"), FAMILIES["llama-tied"])


def card(directory: Path) -> ModelCard:
    loaded: ModelCard = ModelCard.load(directory / CARD)
    return loaded


def rewritten(written: QuantizedDirectory, pretrained: str, recipe: Recipe) -> ModelCard:
    write_model_card(written.path, pretrained, recipe, SUMMARY)
    return card(written.path)


def test_a_complete_directory_has_one(written: QuantizedDirectory, tmp_path: Path) -> None:
    directory = write_quantized(tmp_path, FAMILIES["llama"])
    found = card(directory.path)
    assert found.data.library_name == "transformers"
    assert found.data.pipeline_tag == "text-generation"
    assert found.data.tags == ["duquant", "quantized", "w4a4"]
    assert found.data.base_model is None, "a path of this machine is nobody's base model"
    assert str(tmp_path) not in found.content
    assert "# source, W4A4 by DuQuant" in found.text
    assert "## Perplexity" not in found.text, "nothing was measured yet"


def test_a_model_of_the_hub_is_the_base_model(written: QuantizedDirectory) -> None:
    found = rewritten(written, "meta-llama/Llama-2-7b-hf", written.recipe)
    assert found.data.base_model == "meta-llama/Llama-2-7b-hf"
    assert "# Llama-2-7b-hf, W4A4 by DuQuant" in found.text


def test_perplexities_are_those_of_the_summary(written: QuantizedDirectory) -> None:
    text = rewritten(written, "owner/name", written.recipe).text
    assert "| wikitext2 | 5.472 | 6.281 |" in text
    assert "| c4 | 6.973 | 7.900 |" in text
    assert "Protocol: non-overlapping windows of 2048 tokens." in text


def test_the_recipe_can_be_read_back(written: QuantizedDirectory) -> None:
    recipe = replace(small_recipe(3), group_size=16, lwc=LWCConfig(epochs=5))
    text = rewritten(written, "owner/name", recipe).text
    (stored,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert Recipe.from_dict(json.loads(stored)) == recipe
    assert "learned weight clipping" in text
    assert "learned weight clipping" not in rewritten(written, "a/b", small_recipe()).text


def test_how_to_load_is_python_that_compiles(written: QuantizedDirectory) -> None:
    text = rewritten(written, "owner/name", written.recipe).text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, CARD, "exec")
    assert "import duquant" in code
    assert "AutoModelForCausalLM.from_pretrained(" in code
    assert "trust_remote_code" not in text


def test_the_card_says_how_to_install_serve_and_check(written: QuantizedDirectory) -> None:
    text = rewritten(written, "owner/name", replace(small_recipe(), key_bits=16)).text
    lines = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert lines[0] == "pip install duquant\n"
    assert 'pip install "duquant[vllm]"\nvllm serve path/to/this/directory\n' in lines
    assert any(line.startswith("python -m duquant.check path/to/this/directory") for line in lines)
    assert "## Limits" in text
    assert "the head are not quantized (keys are not quantized)." in text


TASK = """
task: letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["a", "b"]
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""


@pytest.mark.filterwarnings("default")
def test_the_lines_for_lm_eval_run_as_they_stand(
    finished_run: FinishedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = card(finished_run.output / "model").text
    (lines,) = re.findall(r"```bash\n(pip install \"duquant\[evaluate.*?)```", text, re.DOTALL)
    directory = str(finished_run.output / "model")
    command = lines.splitlines()[1].replace("path/to/this/directory", directory)
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "duquant.lm_eval"]
    items = tmp_path / "items.jsonl"
    items.write_text('{"question": "which?", "gold": 0}\n' * 3)
    (tmp_path / "letters.yaml").write_text(TASK.format(items=items))
    options = ["--include_path", str(tmp_path), "--device", "cpu", "--batch_size", "2"]
    words[words.index("piqa")] = "letters"
    monkeypatch.setattr(sys, "argv", [*words[2:], *options])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda: None)  # of the whole process
    without_index = partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", without_index)  # seconds for its own tasks
    lm_eval.main()
    assert re.search(r"\|letters *\|.*\|acc *\|", capsys.readouterr().out)


def test_sizes_add_up_to_every_stored_tensor(written: QuantizedDirectory) -> None:
    sizes = size_breakdown(written.path)
    tensors = {
        name: tensor
        for file in written.path.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    assert sum(sizes.values()) == sum(tensor.nbytes for tensor in tensors.values())
    packed = sum(t.nbytes for name, t in tensors.items() if name.endswith(".packed"))
    assert sizes["packed weights"] == packed
    text = rewritten(written, "owner/name", written.recipe).text
    for kind, size in sizes.items():
        assert f"| {kind} | {size / 1e6:.2f} |" in text
    assert f"| all | {sum(sizes.values()) / 1e6:.2f} |" in text


def test_a_finished_run_writes_what_it_measured(finished_run: FinishedRun) -> None:
    summary = json.loads((finished_run.output / "summary.json").read_text())
    found = card(finished_run.output / "model")
    values = summary["perplexity"]["topics"]
    line = f"| topics | {values['full_precision']:.3f} | {values['quantized']:.3f} |"
    assert line in found.text
    assert summary["protocol"] in found.text


def test_a_block_of_llama_2_7b_takes_less_than_a_third_of_its_bf16_linears() -> None:
    """Rotations and norms included: shared ones of 128 channels are small change."""
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_attention_heads=32)
    with torch.device("meta"):
        block = LlamaDecoderLayer(config, 0).to(torch.bfloat16)
    linears = sum(2 * rows * columns for rows, columns in linear_shapes(block).values())
    assert linears == 2 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert packed_bytes(block, Recipe()) <= 0.30 * linears
