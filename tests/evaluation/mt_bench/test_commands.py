"""The command line: every subcommand as a process, every bad input in one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cli
from duquant.evaluation.mt_bench import commands
from tests.chat_bench import (
    read_lines,
    write_bench,
    write_chat_model,
    write_lines,
    write_questions,
    write_references,
)
from tests.judge_server import KEY, judge_server
from tests.small_run import run

Outcome = tuple[int, str, str]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run the command line in this process; returns status, output and standard error."""

    def call(*options: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cli.py", "mtbench", *options])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call


def assert_refused(outcome: Outcome, *words: str) -> None:
    status, _, message = outcome
    assert status == 2
    assert message.startswith("error: ")
    assert message.count("\n") == 1, message
    for word in words:
        assert word in message


def test_answer_judge_show(tmp_path: Path) -> None:
    model, bench = write_chat_model(tmp_path / "tiny"), str(tmp_path / "bench")
    questions, references = write_questions(tmp_path), write_references(tmp_path)
    answered = run(
        *("mtbench", "answer", "--pretrained", str(model), "--questions", str(questions)),
        *("--output_dir", bench, "--chat_template", "mistral", "--max_new_tokens", "4"),
    )
    assert answered.returncode == 0, answered.stderr
    assert "3/3, about 0:00 left" in answered.stderr
    assert len(read_lines(tmp_path / "bench" / "model_answer" / "tiny.jsonl")) == 3
    with judge_server("[[3]]", 429, "[[5]]") as server:
        judged = run(
            *("mtbench", "judge", "--endpoint", server.url, "--judge_model", "judge"),
            *("--reference_answers", str(references), "--output_dir", bench),
            *("--request.first_delay", "0"),
            OPENAI_API_KEY=KEY,
        )
    assert judged.returncode == 0, judged.stderr
    assert len(server.requests) == 7
    assert KEY not in judged.stdout + judged.stderr
    files = [file for file in (tmp_path / "bench").rglob("*") if file.is_file()]
    assert not any(KEY in file.read_text(encoding="utf-8") for file in files)
    shown = run("mtbench", "show", "--output_dir", bench, COLUMNS="120")
    assert shown.returncode == 0, shown.stderr
    assert "tiny" in shown.stdout
    as_json = run("mtbench", "show", "--output_dir", bench, "--json")
    (judge,) = json.loads(as_json.stdout)["judges"]
    assert judge == json.loads((tmp_path / "bench" / "results_judge.json").read_text())
    assert "the same as JSON" in as_json.stderr
    (score,) = json.loads((tmp_path / "bench" / "results_judge.json").read_text())["single"]
    assert score["categories"] == {"writing": 4.0, "math": 7.0, "stem": 7.0}
    assert (score["turn_1"], score["turn_2"], score["average"]) == (17 / 3, 19 / 3, 6.0)


def test_show_needs_judgments(tmp_path: Path, command: Callable[..., Outcome]) -> None:
    refused = command("show", "--output_dir", str(tmp_path / "nothing"))
    assert_refused(refused, "holds no judgments")


def test_bad_answer_options(tmp_path: Path, command: Callable[..., Outcome]) -> None:
    model, questions = write_chat_model(tmp_path / "tiny"), write_questions(tmp_path)
    bench = tmp_path / "bench"

    def refuse(*options: str) -> Outcome:
        given = ["--pretrained", str(model), "--questions", str(questions)]
        return command("answer", *given, "--output_dir", str(bench), *options)

    assert_refused(refuse(), "no chat template", "--chat_template vicuna_v1.1")
    assert_refused(refuse("--chat_template", "klingon"), "chat_template", "klingon")
    assert_refused(refuse("--chat_template", "llama-3"), "does not fit")
    assert_refused(refuse("--max_new_tokens", "0"), "max_new_tokens is 0")
    assert_refused(refuse("--limit", "0"), "limit is 0")
    assert_refused(refuse("--colour", "blue"), "colour")
    assert_refused(refuse("--pretrained", "./nowhere"), "no model directory ./nowhere")
    assert_refused(refuse("--questions", "nowhere.jsonl"), "there is no file nowhere.jsonl")
    template = ("--chat_template", "mistral")
    assert_refused(refuse(*template, "--model_id", "a/b"), "model_id is 'a/b'")
    assert_refused(refuse(*template, "--device", "nonsense"), "there is no device nonsense")
    for size in (600, 5000):
        other = write_chat_model(tmp_path / str(size), vocab_size=size)
        refused = refuse(*template, "--pretrained", str(other))
        assert_refused(refused, "the tokenizer of", "do not belong together")
    assert not bench.exists(), "nothing may be written"


def test_bad_judge_options(
    tmp_path: Path, command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, references = write_bench(tmp_path, "alpha"), write_references(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def refuse(url: str, *options: str) -> Outcome:
        given = ["--endpoint", url, "--judge_model", "judge", "--output_dir", str(bench.path)]
        return command("judge", *given, *options)

    known = ("--reference_answers", str(references))
    with judge_server() as server:
        assert_refused(refuse(server.url, *known), "OPENAI_API_KEY is not set")
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        assert_refused(refuse(server.url, *known), "HTTP 401", "OPENAI_API_KEY")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert_refused(refuse(server.url), "math", "--reference_answers")
        assert_refused(refuse(server.url, *known, "--mode", "triple"), "mode", "triple")
        assert_refused(refuse(server.url, *known, "--attempts", "0"), "attempts is 0")
        assert_refused(refuse(server.url, *known, "--request.retries", "-1"), "retries is -1")
        broken = write_lines(tmp_path / "prompts.jsonl", [{"name": "single-v1"}])
        assert_refused(refuse(server.url, *known, "--judge_prompts", str(broken)), "line 1")
        assert_refused(refuse("somewhere", *known), "endpoint is 'somewhere'")
        assert server.requests == []
    assert_refused(refuse(server.url, *known), "cannot be reached")
    assert not (bench.path / "model_judgment").exists(), "nothing may be written"


def test_bad_judgments(tmp_path: Path, command: Callable[..., Outcome]) -> None:
    bench = write_bench(tmp_path, "alpha")
    judgment = {"question_id": 1, "turn": 1, "model": "alpha"}
    write_lines(bench.judgments("judge", "single"), [{**judgment, "score": 5}, judgment])
    shown = command("show", "--output_dir", str(bench.path))
    assert_refused(shown, "judge_single.jsonl, line 2", "no usable score")
    shown = command("show", "--output_dir", str(bench.path), "--judge_model", "other")
    assert_refused(shown, "no judgments of other")
    write_lines(bench.judgments("judge", "single"), [{**judgment, "score": 5}])
    shown = command("show", "--output_dir", str(bench.path), "--models", "beta")
    assert_refused(shown, "judged none of the models")


def test_control_c_is_one_line(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "BenchDirectory", interrupt)
    assert command("show") == (130, "", "interrupted; the same command continues\n")
