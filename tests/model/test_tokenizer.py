"""One rule for a tokenizer and the embeddings: added tokens do no harm until a text reaches one."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import cli
import duquant
from callbacks.run_directory import prepare_fit
from duquant.evaluation.loaded_model import ModelSource
from duquant.model.tokenizer import (
    load_tokenizer,
    pad_with_known_token,
    require_known_tokens,
    require_matching_vocabulary,
)
from tests.block_by_block import small_recipe
from tests.in_process import LIGHTNING_WARNINGS, small_data, small_language_model, write_text
from tests.small_run import VOCABULARY, write_small_model
from tests.task_files import write_task_files

pytestmark = LIGHTNING_WARNINGS


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many fine-tuned models: a [PAD] that has no row of the embeddings."""
    directory = write_small_model(tmp_path_factory.mktemp("padded") / "model", blocks=1)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(directory)
    assert len(tokenizer) == VOCABULARY + 1
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def reaching(text: Path) -> Path:
    """A text in which the token stands."""
    path = text.with_name("reaching.txt")
    path.write_text("[PAD] " * 40 + text.read_text(encoding="utf-8"), encoding="utf-8")
    return path


@pytest.mark.parametrize("count", [1, 2, 40])
def test_added_tokens_beyond_the_embeddings_are_no_other_model(count: int, padded: Path) -> None:
    tokenizer = load_tokenizer(padded)
    tokenizer.add_tokens([f"<extra {index}>" for index in range(count)])
    require_matching_vocabulary(tokenizer, VOCABULARY, "it")
    with pytest.raises(ValueError, match="gives tokens up to 1023, but the model knows 1023"):
        require_matching_vocabulary(tokenizer, VOCABULARY - 1, "it")
    with pytest.raises(ValueError, match="but the model 2000: they do not belong together"):
        require_matching_vocabulary(tokenizer, 2000, "it")


def test_the_token_that_is_reached_is_named(padded: Path) -> None:
    tokenizer = load_tokenizer(padded)
    require_known_tokens([], VOCABULARY, tokenizer)
    require_known_tokens([3, VOCABULARY - 1], VOCABULARY, tokenizer)
    with pytest.raises(ValueError, match=r"token 1024 \('\[PAD\]'\), but the model knows 1024"):
        require_known_tokens([3, VOCABULARY], VOCABULARY, tokenizer)


def test_padding_uses_a_token_that_the_model_knows(padded: Path) -> None:
    tokenizer = load_tokenizer(padded)
    pad_with_known_token(tokenizer, VOCABULARY + 1)
    assert tokenizer.pad_token == "[PAD]"
    pad_with_known_token(tokenizer, VOCABULARY)
    assert max(tokenizer(["a b c d", "a"], padding=True).input_ids[1]) < VOCABULARY


# fit, quantize and evaluate alike


def test_a_text_that_does_not_reach_it_is_fitted_and_evaluated(
    padded: Path, text: Path, tmp_path: Path
) -> None:
    model = small_language_model(padded, tmp_path / "run")
    assert not prepare_fit(model, small_data(padded, text), None)
    sizes = {"num_samples": 2, "sequence_length": 16}
    content = text.read_text(encoding="utf-8")
    quantized = duquant.quantize(
        padded, content, small_recipe(), output_dir=tmp_path / "model", **sizes
    )
    for directory in (padded, quantized):
        assert ModelSource.find(str(directory)).vocab_size == VOCABULARY


@pytest.mark.parametrize("place", ["calibration", "validation"])
def test_fit_refuses_a_text_that_reaches_it(
    place: str, padded: Path, text: Path, reaching: Path, tmp_path: Path
) -> None:
    corpora: dict[str, Any] = {
        "calibration": {"calibration": str(reaching), "num_samples": 200},
        "validation": {"validation": {"text": str(reaching)}},
    }
    model = small_language_model(padded, tmp_path / "run")
    with pytest.raises(ValueError, match=r"token 1024 \('\[PAD\]'\)"):
        prepare_fit(model, small_data(padded, text, **corpora[place]), None)
    assert not model.output_dir.exists()


def test_quantize_refuses_it(padded: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    sizes = {"num_samples": 2, "sequence_length": 16}
    with pytest.raises(ValueError, match=r"token 1024 \('\[PAD\]'\)"):
        duquant.quantize(padded, "[PAD]" * 100, small_recipe(), output_dir=output, **sizes)
    assert not output.exists()


@pytest.fixture
def evaluate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    def command(*options: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cli.py", "evaluate", *map(str, options)])
        status = 0
        try:
            cli.main()
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        return status, capsys.readouterr().err

    return command


def test_evaluate_refuses_it(
    padded: Path, reaching: Path, tmp_path: Path, evaluate: Callable[..., tuple[int, str]]
) -> None:
    output = tmp_path / "out"
    status, told = evaluate(
        *("--model", padded, "--perplexity", f"{{text: {reaching}}}", "--output_dir", output),
        *("--sequence_length", 32),
    )
    assert status == 2
    assert "the tokenizer gave token 1024 ('[PAD]')" in told.splitlines()[-1]
    assert not output.exists()


@pytest.mark.parametrize("reached", [False, True])
def test_a_task_whose_items_reach_it_is_refused(
    reached: bool, padded: Path, tmp_path: Path, evaluate: Callable[..., tuple[int, str]]
) -> None:
    data = write_task_files(tmp_path / "data")
    if reached:
        file = data / "piqa.jsonl"
        items = [json.loads(line) for line in file.read_text().splitlines()]
        items[-1]["query"] += " [PAD]"
        file.write_text("".join(json.dumps(item) + "\n" for item in items))
    status, told = evaluate(
        *("--model", padded, "--tasks", "piqa", "--data_dir", data),
        *("--output_dir", tmp_path / "out"),
    )
    assert status == (2 if reached else 0), told
    if reached:
        assert "('[PAD]')" in told.splitlines()[-1]
        assert not list((tmp_path / "out").rglob("*.json"))
