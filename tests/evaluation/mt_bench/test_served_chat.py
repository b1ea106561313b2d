"""A served model answers: how it is asked, what is kept, and what is refused."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from duquant.evaluation.mt_bench.answer_command import answer
from duquant.evaluation.mt_bench.bench_directory import BenchDirectory
from duquant.evaluation.mt_bench.concurrency import in_parallel
from duquant.evaluation.mt_bench.request_policy import RequestLimits
from duquant.evaluation.mt_bench.run_scores import _asked
from tests.chat_bench import QUESTIONS, read_lines, write_questions
from tests.judge_server import KEY, JudgeServer, judge_server

MODEL = "runs/mine/model"
FAST = RequestLimits(retries=1, first_delay=0.0, timeout=5.0)


def echo(payload: dict[str, Any]) -> str:
    """Tells the last message, and how many came before it."""
    messages = payload["messages"]
    return f" {len(messages)}: {messages[-1]['content']} "


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    """It asks for no key and serves one model."""
    with judge_server() as running:
        running.reply, running.accepted = echo, {"none", KEY}
        running.models = [{"id": MODEL, "root": MODEL, "max_model_len": 512}]
        yield running


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return write_questions(tmp_path)


def ask(server: JudgeServer, questions: Path, **options: Any) -> BenchDirectory:
    output = questions.parent / "bench"
    given = {"max_new_tokens": 7, "output_dir": output, "request": FAST, **options}
    answer(questions, endpoint=server.url, **given)
    return BenchDirectory(output)


def test_a_conversation_is_sent_turn_by_turn(server: JudgeServer, questions: Path) -> None:
    bench = ask(server, questions, seed=5)
    records = {record["question_id"]: record for record in read_lines(bench.answers("mine"))}
    for question in QUESTIONS:
        first, second = question["turns"]
        assert records[question["question_id"]]["choices"][0]["turns"] == [
            f"1: {first}",
            f"3: {second}",
        ]
    asked = [r for r in server.requests if r["messages"][0]["content"] == "Why is ice light?"]
    assert asked[1] == {
        "model": MODEL,
        "messages": [
            {"role": "user", "content": "Why is ice light?"},
            {"role": "assistant", "content": "1: Why is ice light?"},
            {"role": "user", "content": "And steam?"},
        ],
        "n": 1,
        "max_tokens": 7,
        "temperature": 0.1,
        "seed": 5 + 3,
    }
    assert set(server.keys) == {"Bearer none"}
    assert _asked(bench, "mine") == (
        "through an endpoint, by its chat template, at most 7 tokens, seed 5"
    )


def test_questions_are_asked_at_the_same_time(server: JudgeServer, questions: Path) -> None:
    together = threading.Barrier(3, timeout=10)

    def reply(payload: dict[str, Any]) -> str:
        together.wait()
        return echo(payload)

    server.reply = reply
    assert len(read_lines(ask(server, questions, parallel=3).answers("mine"))) == 3


def test_a_stopped_run_continues(server: JudgeServer, questions: Path) -> None:
    server.script += [429, "A", "B", "C", 400]
    with pytest.raises(ValueError, match=r"HTTP 400 .*check --served_model, --max_new_tokens"):
        ask(server, questions, parallel=1)
    bench = ask(server, questions)
    turns = [record["choices"][0]["turns"] for record in read_lines(bench.answers("mine"))]
    assert turns[0] == ["A", "B"]
    assert len(turns) == len({tuple(turn) for turn in turns}) == 3
    num_asked = len(server.requests)
    assert num_asked == 1 + 2 + 2 + 4  # 429, the first question, half the second, and the rest
    ask(server, questions)
    assert len(server.requests) == num_asked
    with pytest.raises(ValueError, match="max_new_tokens was 7, now 8"):
        ask(server, questions, max_new_tokens=8)


def test_the_key_goes_along_where_there_is_one(
    server: JudgeServer, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.accepted = {KEY}
    with pytest.raises(ValueError, match=r"HTTP 401.*OPENAI_API_KEY"):
        ask(server, questions)
    assert not (questions.parent / "bench").exists()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ask(server, questions)
    assert set(server.keys) == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"pretrained": "quickstart"}, "not both"),
        ({"endpoint": None}, "--pretrained MODEL, or --endpoint"),
        ({"endpoint": None, "pretrained": "x", "served_model": "y"}, "--served_model is a name at"),
        ({"served_model": "other"}, f"serves {MODEL}, not 'other'"),
        ({"dtype": "float32"}, "--dtype float32 is for a model that is loaded here"),
        ({"device": "cpu"}, "--device cpu is for"),
        ({"chat_template": "mistral"}, "--chat_template mistral is for"),
        ({"parallel": 0}, "parallel is 0"),
        ({"endpoint": "localhost:8000"}, "endpoint is 'localhost:8000'"),
        ({"endpoint": "http://127.0.0.1:9/v1"}, "cannot be reached"),
        ({"model_id": "a/b"}, "model_id is 'a/b'"),
    ],
)
def test_refusals(
    server: JudgeServer, questions: Path, options: dict[str, Any], complaint: str
) -> None:
    given = {"endpoint": server.url, "output_dir": questions.parent / "bench", **options}
    with pytest.raises(ValueError, match=complaint) as refusal:
        answer(questions, **given)
    assert "\n" not in str(refusal.value)
    assert server.requests == []
    assert not (questions.parent / "bench").exists()


def test_several_models_or_none_are_not_guessed(server: JudgeServer, questions: Path) -> None:
    server.models.append({"id": "other", "max_model_len": "many"})
    with pytest.raises(ValueError, match=f"serves {MODEL}, other: choose one by --served_model"):
        ask(server, questions)
    server.models = [{"name": "no id"}]
    with pytest.raises(ValueError, match=r"does not say which models it serves .HTTP 200.*/v1"):
        ask(server, questions)
    assert read_lines(ask(server, questions, served_model="named").answers("named"))


def test_what_is_being_asked_when_one_fails_is_kept() -> None:
    begun, failed = threading.Event(), threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert begun.wait(10)
            failed.set()
            raise ValueError("no")
        begun.set()
        assert failed.wait(10)
        time.sleep(0.1)
        return number

    found: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match="no"):
        found.extend(in_parallel(work, range(99), 2))
    assert found == [(1, 1)]
