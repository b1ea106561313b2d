"""An answer file is FastChat's, and an interrupted run goes on as if nothing had happened."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from duquant.evaluation.mt_bench import answer_command
from duquant.evaluation.mt_bench.bench_directory import BenchDirectory
from duquant.evaluation.mt_bench.chat_model import ChatModel
from duquant.evaluation.mt_bench.progress import StepProgress
from tests.chat_bench import QUESTIONS, read_lines, write_chat_model, write_lines, write_questions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_questions(tmp_path)


def run(model: Path, questions: Path, output: Path, **options: Any) -> BenchDirectory:
    settings: dict[str, Any] = {"chat_template": "mistral", "max_new_tokens": 6, "device": "cpu"}
    answer_command.answer(questions, str(model), output_dir=output, **{**settings, **options})
    return BenchDirectory(output)


def test_answers_in_fastchats_schema(model: Path, questions: Path, tmp_path: Path) -> None:
    bench = run(model, questions, tmp_path / "bench")
    records = read_lines(bench.answers("tiny"))
    assert [record["question_id"] for record in records] == [1, 2, 3]
    for record in records:
        assert list(record) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
        assert record["model_id"] == "tiny"
        (choice,) = record["choices"]
        assert choice["index"] == 0
        assert [type(turn) for turn in choice["turns"]] == [str, str]
    assert len({record["answer_id"] for record in records}) == 3
    assert bench.questions.read_bytes() == questions.read_bytes()
    assert bench.models() == ["tiny"], "FastChat takes every .jsonl in this folder for answers"


def test_interrupted_run_continues_and_asks_nothing_twice(
    model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(model, questions, tmp_path / "whole")
    asked: list[int] = []
    answer = ChatModel.answer

    def stopping(chat: ChatModel, question: Any, seed: int) -> list[str]:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(question.question_id)
        return answer(chat, question, seed)

    monkeypatch.setattr(ChatModel, "answer", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(model, questions, tmp_path / "parts")
    bench = BenchDirectory(tmp_path / "parts")
    torn = bench.answers("tiny").read_bytes()[:-7]  # killed while the second answer was written
    bench.answers("tiny").write_bytes(torn)
    monkeypatch.setattr(ChatModel, "answer", answer)
    seen = spy_on_answers(monkeypatch)
    run(model, questions, tmp_path / "parts")
    assert seen == [2, 3]
    turns = [
        [record["choices"] for record in read_lines(directory.answers("tiny"))]
        for directory in (whole, bench)
    ]
    assert turns[0] == turns[1]


def test_limit_is_a_beginning(
    model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spy_on_answers(monkeypatch)
    run(model, questions, tmp_path / "bench", limit=1)
    run(model, questions, tmp_path / "bench")
    assert seen == [1, 2, 3]


def test_a_finished_run_loads_no_model(
    model: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(model, questions, tmp_path / "bench", limit=1)
    monkeypatch.delattr(answer_command.ModelSource, "read")
    run(model, questions, tmp_path / "bench", limit=1)
    assert "tiny has answered all 1 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_new_tokens": 7}, "max_new_tokens was 6, now 7"),
        ({"chat_template": "vicuna_v1.1"}, "chat_template was"),
        ({"seed": 1}, "seed was 0, now 1"),
    ],
)
def test_other_settings_are_not_mixed(
    model: Path, questions: Path, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    run(model, questions, tmp_path / "bench", limit=1)
    with pytest.raises(ValueError, match=f"another run.*{complaint}.*--model_id"):
        run(model, questions, tmp_path / "bench", **options)
    run(model, questions, tmp_path / "bench", model_id="other", limit=1, **options)


@pytest.mark.parametrize(
    ("file", "complaint"),
    [("model.safetensors", "model was"), ("tokenizer_config.json", "tokenizer was")],
)
def test_another_model_of_the_same_name_is_not_mixed(
    model: Path, questions: Path, tmp_path: Path, file: str, complaint: str
) -> None:
    run(model, questions, tmp_path / "bench", limit=1)
    other = Path(shutil.copytree(model, tmp_path / "tiny"))
    run(other, questions, tmp_path / "bench", limit=1)
    changed = bytearray((other / file).read_bytes())
    changed[-2:] = bytes([changed[-2] ^ 1]) + changed[-1:] if file.endswith("rs") else b" \n}"
    (other / file).write_bytes(changed)
    with pytest.raises(ValueError, match=f"another run.*{complaint}.*--model_id"):
        run(other, questions, tmp_path / "bench")


def test_answers_of_unknown_origin_are_left_alone(
    model: Path, questions: Path, tmp_path: Path
) -> None:
    bench = run(model, questions, tmp_path / "bench", limit=1)
    bench.settings("tiny").unlink()
    with pytest.raises(ValueError, match=r"settings.json is missing"):
        run(model, questions, tmp_path / "bench")


def test_other_questions_are_not_mixed(model: Path, questions: Path, tmp_path: Path) -> None:
    run(model, questions, tmp_path / "bench", limit=1)
    other = write_lines(tmp_path / "other.jsonl", QUESTIONS[:1])
    with pytest.raises(ValueError, match=r"not those of.*--output_dir"):
        run(model, other, tmp_path / "bench", model_id="other")


def test_progress_counts_what_is_left() -> None:
    printed = io.StringIO()

    def fail_after_a_step() -> None:
        with StepProgress("answering", 4, 1, Console(file=printed, width=100)) as progress:
            progress.step("question 2")
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        fail_after_a_step()
    lines = printed.getvalue().splitlines()
    assert lines[0] == "1 of 4 are done already"
    assert lines[1].startswith("answering: question 2; 2/4, about 0:0")
    assert lines[2] == "interrupted: 2 of 4 are kept; the same command continues"


def spy_on_answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the questions that are asked from now on."""
    seen: list[int] = []
    answer = ChatModel.answer

    def spy(chat: ChatModel, question: Any, seed: int) -> list[str]:
        seen.append(question.question_id)
        return answer(chat, question, seed)

    monkeypatch.setattr(ChatModel, "answer", spy)
    return seen
