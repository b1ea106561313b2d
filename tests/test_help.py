"""Every subcommand explains itself, each asked in a process of its own."""

import pytest

from tests.small_run import run

HELP: dict[str, list[str]] = {
    "": ["Quantize language models to few bits", "fit", "validate", "evaluate", "mtbench"],
    "fit": ["--output_dir", "--model.rotation.selector", "channels of a rotation block"],
    "validate": ["finished run's model beside the original's", "--data.num_samples", "--ckpt_path"],
    "evaluate": [
        "-c CONFIG", "a quantized model directory, a full-precision one, a hub id",
        "items of each task at most", "add to what is there", "original dev/ and test/ CSV files",
    ],
    "mtbench": ["answer", "judge", "show"],
    "mtbench answer": ["--chat_template", "llama-3", "--limit", "tokens an answer may have"],
    "mtbench judge": ["--judge_prompts", "compare with published ones", "OPENAI_API_KEY"],
    "mtbench show": ["--baseline", "for the categories"],
    "report": ["run directories, as fit's --output_dir", "side by side", "report.html"],
}  # fmt: skip


@pytest.mark.parametrize("subcommand", HELP)
def test_help_reads_well(subcommand: str) -> None:
    shown = run(*subcommand.split(), "--help")
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    assert "Lightning Trainer command line tool" not in shown.stdout
    assert "<class" not in shown.stdout
    text = " ".join(shown.stdout.split())
    for words in HELP[subcommand]:
        assert words in text
