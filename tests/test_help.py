"""Every subcommand explains itself."""

import sys

import pytest

import cli
from tests.small_run import run_anew

HELP: dict[str, list[str]] = {
    "": ["Quantize language models to few bits", "fit", "validate", "evaluate", "mtbench"],
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


def test_help_of_a_process_of_its_own() -> None:
    shown = run_anew("report", "--help")
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    assert "run directories" in shown.stdout
