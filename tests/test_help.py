"""Every subcommand explains itself."""

import re
import sys

import pytest

import cli
import duquant
from callbacks import help_texts
from tests import small_run

HELP: dict[str, list[str]] = {
    "": ["Quantize language models to few bits", "fit", "validate", "evaluate", "mtbench",
         "Exit status: 0 finished", "--version"],
    "fit": ["--output_dir", "--model.rotation.selector", "channels of a rotation block"],
    "validate": ["finished run's model beside the original's", "--data.num_samples", "--ckpt_path"],
    "evaluate": [
        "-c CONFIG", "a quantized model directory, a full-precision one, a hub id",
        "items of each task at most", "add to what is there", "original dev/ and test/ CSV files",
        "--endpoint", "--served_model", "as vllm serve does",
    ],
    "mtbench": ["answer", "judge", "show"],
    "mtbench answer": [
        "--endpoint", "as vllm serve does", "--request.timeout", "questions at a time",
        "--chat_template", "llama-3", "--limit", "tokens an answer may have",
    ],
    "mtbench judge": ["--judge_prompts", "compare with published ones", "OPENAI_API_KEY"],
    "mtbench show": ["--baseline", "for the categories"],
    "export": ["dequantized", "export-LAYOUT in the run"],
    "report": ["run directories, as fit's --output_dir", "side by side", "report.html"],
}  # fmt: skip


@pytest.mark.parametrize("subcommand", HELP)
def test_help_reads_well(
    subcommand: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cli.py", *subcommand.split(), "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.build()
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "Lightning Trainer command line tool" not in shown.out
    assert "<class" not in shown.out
    text = " ".join(shown.out.split())
    for words in HELP[subcommand]:
        assert words in text


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Status, standard output and standard error of the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["cli.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, shown.out, shown.err


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(["--version"], monkeypatch, capsys)
    assert shown == (0, f"duquant {duquant.__version__}\n", "")


@pytest.mark.parametrize("arguments", help_texts.FIRST_STEPS, ids=lambda given: " ".join(given))
def test_without_options_there_are_first_steps(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(list(arguments), monkeypatch, capsys)
    assert (status, out) == (2, "")
    assert err.startswith("error: no ")
    assert err.count("\n") == 5
    commands = re.findall(r"^  python cli\.py (fit .*?)   ", err, re.MULTILINE)
    assert len(commands) == 2, "what is advised can be parsed"
    monkeypatch.setattr(cli.DuQuantCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(cli.DuQuantCLI, "_run_subcommand", lambda self, subcommand: None)
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["cli.py", *command.split()])
        assert cli.build().config["fit"]["model"]["pretrained"] in ("quickstart", "MODEL")


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_what_most_runs_set_comes_first(
    subcommand: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run([subcommand, "--help"], monkeypatch, capsys)
    options = re.findall(r"^  (?:-\w \w+, )?(--[\w.]+)", out, re.MULTILINE)
    count = len(help_texts.OFTEN_CHANGED)
    assert tuple(options[:count]) == help_texts.OFTEN_CHANGED
    assert "--model.smoothing.alpha" in options[count:]
    assert len(options) == len(set(options)), "every option stands once"
    assert out.index("what most runs set:") < 250, "no wall before it"


def test_completion() -> None:
    """In a process that knows no classes of tests: options of all callbacks would be listed."""
    pytest.importorskip("shtab")
    shown = small_run.run("--print_completion", "shtab-bash")
    assert shown.returncode == 0, shown.stderr
    assert "--model.rotation.selector" in shown.stdout
    assert shown.stdout.endswith("complete -o bashdefault -F _shtab_cli_py cli.py\n")


def test_help_of_a_process_of_its_own() -> None:
    shown = small_run.run("report", "--help")
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    assert "run directories" in shown.stdout
