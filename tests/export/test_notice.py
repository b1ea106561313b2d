"""A quantized directory before duquant is imported: refused, and the message says what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from duquant import extras, lm_eval
from duquant.export.conversion import QuantizedSource, export_model
from duquant.export.quantization_config import NOTICE, NOTICE_FIELD
from duquant.export.targets.dequantized import Dequantized
from duquant.export.targets.native import Native
from tests.quantized_directory import QuantizedDirectory, logits, token_ids, write_quantized
from tests.tiny_models import FAMILIES

LOAD = """
import sys
from transformers import AutoModel, AutoModelForCausalLM
for kind in (AutoModel, AutoModelForCausalLM):
    try:
        kind.from_pretrained(sys.argv[1], attn_implementation="eager")
    except ValueError as error:
        print(error)
assert "duquant" not in sys.modules
"""
IDS = token_ids(seed=3)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> QuantizedDirectory:
    return write_quantized(tmp_path_factory.mktemp("notice"), FAMILIES["llama-tied"])


def named(directory: Path) -> str | None:
    config: dict[str, str] = json.loads((directory / "config.json").read_text())
    return config.get(NOTICE_FIELD)


def test_transformers_alone_says_what_to_install(quantized: QuantizedDirectory) -> None:
    command = [sys.executable, "-c", LOAD, str(quantized.path)]
    process = subprocess.run(command, text=True, capture_output=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("pip install duquant, then import duquant") == 2


def test_with_duquant_the_notice_means_nothing(
    quantized: QuantizedDirectory, tmp_path: Path
) -> None:
    assert named(quantized.path) == NOTICE
    model = quantized.load()
    plain = AutoModelForCausalLM.from_config(quantized.decoder.config)
    assert model.config._experts_implementation == plain.config._experts_implementation
    assert quantized.load(output_attentions=True).config._attn_implementation == "eager"
    model.save_pretrained(tmp_path)
    assert named(tmp_path) == NOTICE
    assert torch.equal(logits(model, IDS), logits(quantized.load(), IDS))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again, IDS), logits(quantized.load(), IDS))


def test_only_our_own_layout_asks_for_duquant(
    quantized: QuantizedDirectory, tmp_path: Path
) -> None:
    source = QuantizedSource(quantized.path)
    export_model(source, tmp_path / "native", Native())
    export_model(source, tmp_path / "plain", Dequantized())
    assert named(tmp_path / "native") == NOTICE
    assert named(tmp_path / "plain") is None


def test_lm_eval_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(extras.EXTRAS, "evaluate", ("no_such_module",))
    with pytest.raises(SystemExit) as stopped:
        lm_eval.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: duquant.lm_eval needs no_such_module, which is not installed: "
        'pip install "duquant[evaluate]"\n'
    )
