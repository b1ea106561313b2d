"""``~`` in every option that is a path, and in the arguments of the Python interface."""

import sys
from pathlib import Path
from typing import Any

import pytest

import cli
import duquant
from duquant.config import LWCConfig, RotationConfig
from duquant.data.corpora import require_source
from duquant.evaluation.command import Evaluate
from duquant.evaluation.mt_bench.chat_model import find_chat_model
from duquant.model.checkpoint import find_model_directory
from duquant.modules.language_model import LanguageModel
from duquant.reporting.report import report
from duquant.user_paths import TEXTS, expand_all, user_path
from tests.small_run import write_small_model

REQUIRED = {
    ("fit",): ["--model.pretrained", "quickstart"],
    ("validate",): ["--model.pretrained", "quickstart"],
    ("evaluate",): [],
    ("report",): [],
    ("mtbench", "answer"): ["--pretrained", "p", "--questions", "q"],
    ("mtbench", "judge"): ["--endpoint", "http://localhost", "--judge_model", "j"],
    ("mtbench", "show"): [],
}
"""What each command cannot be parsed without."""
PATHS = {
    "output_dir", "pretrained", "tokenizer", "calibration", "validation", "default_root_dir",
    "ckpt_path", "model", "run", "runs", "config", "compare", "data_dir", "tasks_dir",
    "mmlu_data_dir", "perplexity", "questions", "reference_answers", "judge_prompts",
}  # fmt: skip
"""The last part of every option that is a path or may be one, or holds some."""
MAPPINGS = {"validation", "perplexity"}
"""Of these, what maps names to paths."""
NO_PATHS = {
    "fit": {"--config", "--model"},
    "validate": {"--config", "--model"},
    "evaluate": {"--ckpt_path"},
}
"""What the parser itself opens, and a choice of ``last`` alone."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.DuQuantCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(cli.DuQuantCLI, "_run_subcommand", lambda self, subcommand: None)
    return tmp_path


def parse(monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["cli.py", *options])
    return cli.build()


def options_of(parser: Any, command: tuple[str, ...]) -> list[str]:
    """A command's options that take paths, as they are given."""
    for name in command:
        parser = parser._subcommands_action._name_parser_map[name]
    names = [(action.option_strings or [action.dest])[-1] for action in parser._actions]
    names = [name for name in names if " " not in name]  # "a --> b" links two options
    given = [name for name in names if name.lstrip("-").rpartition(".")[2] in PATHS]
    return [name for name in given if name not in NO_PATHS.get(command[0], ())]


def texts(values: Any) -> list[str]:
    """Everything in parsed options, as text."""
    items = list(values.values()) if isinstance(values, dict) else values
    return [t for v in items for t in texts(v)] if isinstance(items, list) else [str(items)]


@pytest.mark.parametrize("command", REQUIRED, ids=" ".join)
def test_every_option_that_is_a_path(
    command: tuple[str, ...], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    required = REQUIRED[command]
    bare = ["somewhere"] if command == ("report",) else []
    options = options_of(parse(monkeypatch, *command, *required, *bare).parser, command)
    assert len(options) >= 2
    for option in options:
        value = "{one: ~/x}" if option.rpartition(".")[2].lstrip("-") in MAPPINGS else "~/x"
        given = [value] if option == "runs" else [*bare, f"{option}={value}"]
        found = texts(parse(monkeypatch, *command, *required, *given).config.as_dict())
        assert str(home / "x") in found, option
        assert not any("~" in text for text in found), option


def test_a_configuration_file_and_what_it_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "run.yaml").write_text(
        "output_dir: ~/run\nmodel:\n  pretrained: ~/model\n"
        "data:\n  calibration: ~/a.txt\n  validation:\n    mine: ~/b.txt\n"
    )
    config = parse(monkeypatch, "fit", "-c", "~/run.yaml").config["fit"]
    run = str(home / "run")
    assert (config.output_dir, config.model.output_dir) == (run, run)
    assert config.trainer.default_root_dir == run
    assert (config.model.pretrained, config.data.tokenizer) == (str(home / "model"),) * 2
    assert config.data.calibration == str(home / "a.txt")
    assert config.data.validation == {"mine": str(home / "b.txt")}


def test_a_home_that_nobody_has(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("~nobody-here/x", "~backup.txt"):
        with pytest.raises(ValueError, match=f"{text}: .* write ./{text} for a file here"):
            user_path(text)
        with pytest.raises(SystemExit):
            parse(monkeypatch, "report", text)
        assert capsys.readouterr().err.startswith(f"error: {text}: there is no such home")


def test_nothing_else_changes(home: Path) -> None:
    values = {"a": ["x~", "a/~/b", "$HOME", "owner/name", 3, None, True], "b": Path("c")}
    assert expand_all(dict(values)) == values
    assert expand_all(["~", {"~/key": "~/x"}, Path("~/y")]) == [
        str(home), {"~/key": str(home / "x")}, home / "y",
    ]  # fmt: skip


def test_the_python_interface(home: Path) -> None:
    """Everything lies in the home directory, and nothing in a folder called ``~``."""
    model = write_small_model(home / "model", blocks=1)
    (home / "text.txt").write_text("A text. " * 200)
    recipe = duquant.Recipe(
        rotation=RotationConfig(block_size=16, max_steps=2), lwc=LWCConfig(epochs=0)
    )
    sizes: dict[str, Any] = {"num_samples": 2, "sequence_length": 16}
    written = duquant.quantize(
        "~/model", (home / "text.txt").read_text(), recipe, output_dir="~/out", **sizes
    )
    assert written == home / "out"
    assert find_model_directory("~/model") == model
    assert require_source("~/text.txt") == home / "text.txt"
    assert find_chat_model("~/model") == model
    assert Evaluate(model="~/model", tasks="x", output_dir="~/e").output == home / "e"
    assert Evaluate(run="~/out", tasks="x").run_directory == home / "out"
    assert Evaluate(run="~/out", tasks="x", data_dir="~/d").folder("data_dir") == home / "d"
    with pytest.raises(ValueError, match=f"{home}/out holds no finished run"):
        report(["~/out"])
    assert LanguageModel("~/model", "~/run", rotation=recipe.rotation).output_dir == home / "run"
    assert not (home / "~").exists()


def test_texts_are_no_paths(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "~ you are"
    config = parse(monkeypatch, "evaluate", f"--system_instruction={said}", "--model=~/m").config
    assert config["evaluate"].system_instruction == said
    assert config["evaluate"].model == str(home / "m")
    for option in TEXTS:
        assert expand_all({option: said, f"subcommand.{option}": said}) == {
            option: said, f"subcommand.{option}": said,
        }  # fmt: skip
