"""Every command that writes into a directory for long is refused while another one does."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cli
import duquant
from duquant.export.conversion import QuantizedSource, export_model
from duquant.export.targets.native import Native
from duquant.run_lock import LOCK_FILE, RunLock
from tests.chat_bench import write_bench, write_chat_model, write_questions, write_references
from tests.in_process import LIGHTNING_WARNINGS, ROTATION, write_text
from tests.judge_server import KEY, judge_server
from tests.quantized_directory import write_quantized
from tests.small_run import write_small_model
from tests.tiny_models import FAMILIES

pytestmark = LIGHTNING_WARNINGS
Start = Callable[[], Any]


def command_line(*words: object) -> Start:
    def start() -> None:
        sys.argv = ["cli.py", *map(str, words)]
        cli.main()

    return start


def quantizing(directory: Path, output: Path) -> Start:
    source = write_small_model(directory / "source", blocks=1)
    text = write_text(directory / "text.txt").read_text()
    recipe = duquant.Recipe(rotation=ROTATION)
    sizes = {"num_samples": 2, "sequence_length": 16}
    return lambda: duquant.quantize(source, text, recipe, output_dir=output, **sizes)


def exporting(directory: Path, output: Path) -> Start:
    source = QuantizedSource(write_quantized(directory, FAMILIES["llama-tied"]).path)
    return lambda: export_model(source, output, Native())


def evaluating(directory: Path, output: Path) -> Start:
    write_text(directory / "text.txt")
    options = ["--perplexity", f"{{text: {directory / 'text.txt'}}}", "--sequence_length", "32"]
    return command_line("evaluate", "--model", "quickstart", *options, "--output_dir", output)


def answering(directory: Path, output: Path) -> Start:
    model, questions = write_chat_model(directory / "tiny"), write_questions(directory)
    options = ["--chat_template", "mistral", "--max_new_tokens", "4", "--output_dir", output]
    return command_line(
        "mtbench", "answer", "--pretrained", model, "--questions", questions, *options
    )


STARTS = {
    "quantize": quantizing,
    "export": exporting,
    "evaluate": evaluating,
    "mtbench answer": answering,
}


@pytest.fixture(autouse=True)
def arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the arguments back afterwards."""
    monkeypatch.setattr(sys, "argv", sys.argv)


def refused(start: Start, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Start while somebody else holds the lock: one line, and nothing is written."""
    with RunLock(output) as lock:
        lock.acquire()
        before = sorted(output.rglob("*"))
        capsys.readouterr()
        with pytest.raises((SystemExit, ValueError)) as stopped:
            start()
        if isinstance(stopped.value, SystemExit):
            said = capsys.readouterr().err.removeprefix("error: ").strip()
            assert stopped.value.code == 2
        else:
            said = str(stopped.value)
        assert said.startswith(f"another run is writing into {output} (process ")
        assert "\n" not in said
        assert sorted(output.rglob("*")) == before


@pytest.mark.parametrize("name", STARTS)
def test_a_second_one_is_refused_and_the_first_leaves_no_lock(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    start = STARTS[name](tmp_path, output)
    refused(start, output, capsys)
    (output / LOCK_FILE).write_text("process 1 on a computer\n")  # of one that was killed
    start()
    assert any(output.iterdir())
    assert not list(output.rglob(LOCK_FILE))


def test_nor_do_two_judges_write_into_one_bench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    bench, references = write_bench(tmp_path, "alpha").path, write_references(tmp_path)
    with judge_server() as server:
        start = command_line(
            *("mtbench", "judge", "--endpoint", server.url, "--judge_model", "judge"),
            *("--reference_answers", references, "--output_dir", bench),
        )
        refused(start, bench, capsys)
        assert not server.requests
        start()
        assert len(server.requests) == 6
    assert not list(bench.rglob(LOCK_FILE))
