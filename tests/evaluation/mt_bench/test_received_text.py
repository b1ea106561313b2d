"""Whatever a judge or a model says is stored first, as it came, and is never asked for twice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duquant.evaluation.mt_bench import commands
from duquant.evaluation.mt_bench.answers import answer_record, load_answers
from duquant.evaluation.mt_bench.bench_directory import BenchDirectory
from duquant.evaluation.mt_bench.completion import completion_text
from duquant.evaluation.mt_bench.endpoint import RequestPolicy
from duquant.evaluation.mt_bench.json_lines import (
    append_record,
    read_records,
    recover_records,
)
from duquant.evaluation.mt_bench.judge_prompts import load_judge_prompts
from duquant.evaluation.mt_bench.judgments import load_judgments
from duquant.evaluation.mt_bench.questions import load_questions
from duquant.evaluation.mt_bench.surrogates import joined, readable
from tests.chat_bench import QUESTIONS, write_bench, write_lines, write_references
from tests.hostile_server import UNREADABLE, Behavior, answer, completion, hostile_server
from tests.judge_server import KEY

FAST = RequestPolicy(retries=1, first_delay=0.0, timeout=5.0)
anything = st.text(st.characters(exclude_categories=()), max_size=40)
"""Every sign that a string can hold, halves of surrogate pairs too."""

REPLIES: dict[str, tuple[bytes, str]] = {
    "low half": (b'"\\udc80 [[7]]"', "\udc80 [[7]]"),
    "high half": (b'"[[7]] \\ud83d"', "[[7]] \ud83d"),
    "halves in the wrong order": (b'"\\ude00\\ud83d[[7]]"', "\ude00\ud83d[[7]]"),
    "a pair": (b'"\\ud83d\\ude00[[7]]"', "😀[[7]]"),
    "not UTF-8": (b'"\xff\xfe [[7]]"', "\udcff\udcfe [[7]]"),
    "a half in UTF-8": (b'"\xed\xa0\xbd[[7]]"', "\udced\udca0\udcbd[[7]]"),
    "half a letter": (b'"\xc3[[7]]"', "\udcc3[[7]]"),
    "NUL": (b'"\\u0000[[7]]\\u0000"', "\0[[7]]\0"),
    "bare NUL": (b'"\0[[7]]"', "\0[[7]]"),
    "line breaks": (b'"a\nb\\r\\n\\u2028\\u0085[[7]]"', "a\nb\r\n\u2028\x85[[7]]"),
    "escapes": (b'"\\u001b[31m\\u202e[[7]]"', "\x1b[31m\u202e[[7]]"),
    "no character": (b'"\\uffff\\ufffe[[7]]"', "\uffff\ufffe[[7]]"),
    "brackets": (b'"' + b"[" * 100_000 + b'[[7]]"', "[" * 100_000 + "[[7]]"),
    "a list of parts": (
        b'[{"type": "text", "text": "[[7]]"}]',
        '[{"type": "text", "text": "[[7]]"}]',
    ),
}
"""Contents of a completion that give seven points, and what is stored."""
UNCLEAR: dict[str, bytes] = {
    "huge score": b'"[[' + b"9" * 5000 + b']]"',
    "small score": b'"[[0.' + b"0" * 5000 + b'1]]"',
    "other digits": '"[[٣٣]]"'.encode(),
    "a number": b"7",
    "a huge number": b"9" * 5000,
    "infinity": b"1e999",
    "not a number": b"NaN",
    "nothing": b"null",
    "true": b"true",
    "an object": b'{"score": 7}',
    "empty": b'""',
    "only a half": b'"\\ud800"',
}
"""Contents without a verdict."""


def said(content: bytes) -> Behavior:
    """A chat completion around a content, and around numbers that no reader of ours needs."""
    numbers = b'"usage": {"a": %s, "b": 1e999, "c": -Infinity}' % (b"9" * 5000)
    return lambda: [answer(b'{%s, "choices": [{"message": {"content": %s}}]}' % (numbers, content))]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def judge(
    directory: Path, *behaviors: Behavior, **options: Any
) -> tuple[list[dict[str, Any]], int]:
    """Judge two turns twice; returns the judgments and how often the judge was asked."""
    bench = write_bench(directory, "alpha")
    references = write_references(directory)
    settings = {"limit": 1, "output_dir": bench.path, "request": FAST, **options}
    with hostile_server(said(b'"hello"'), *behaviors) as server:
        commands.judge(server.url, "judge", references, **settings)
        asked = len(server.requests)
        first = bench.judgments("judge", "single").read_bytes()
        commands.judge(server.url, "judge", references, **settings)
        assert len(server.requests) == asked + 1, "only whether it is there"
        assert bench.judgments("judge", "single").read_bytes() == first
    return load_judgments(bench.judgments("judge", "single")), asked - 1


@pytest.mark.parametrize("name", REPLIES)
def test_strange_replies_count(name: str, tmp_path: Path) -> None:
    content, stored = REPLIES[name]
    judgments, asked = judge(tmp_path, said(content))
    assert asked == 2
    assert [judgment["score"] for judgment in judgments] == [7, 7]
    assert [judgment["judgment"] for judgment in judgments] == [stored, stored]
    replies = recover_records(BenchDirectory(tmp_path / "bench").replies("judge"))
    assert [reply["reply"] for reply in replies] == [stored, stored]


@pytest.mark.parametrize("name", UNCLEAR)
def test_replies_without_a_verdict_are_counted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judgments, asked = judge(tmp_path, said(UNCLEAR[name]), attempts=2)
    assert asked == 4
    assert [judgment["score"] for judgment in judgments] == [-1, -1]
    assert "2 of 2 judgments have no verdict and count as malformed" in capsys.readouterr().out


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize(("question", "turn"), [(1, 1), (1, 2), (3, 2)])
def test_one_reply_that_cannot_be_read_ends_nothing(
    name: str, question: int, turn: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither before any reply could be read nor after."""
    bad = b"".join(UNREADABLE[name]())
    shown, hidden = (f"alpha on {question}, turn {number}".encode() for number in (turn, turn + 1))

    def behave() -> list[bytes]:
        prompt = server.requests[-1]
        is_bad = shown in prompt and hidden not in prompt
        return [bad] if is_bad else [answer(completion("[[7]]"))]

    bench = write_bench(tmp_path, "alpha")
    references = write_references(tmp_path)
    settings: dict[str, Any] = {"output_dir": bench.path, "request": FAST, "attempts": 2}
    with hostile_server(behave) as server:
        commands.judge(server.url, "judge", references, **settings)
        asked = len(server.requests)
        commands.judge(server.url, "judge", references, **settings)
        assert len(server.requests) == asked + 1
    judgments = load_judgments(bench.judgments("judge", "single"))
    scores = {(r["question_id"], r["turn"]): r["score"] for r in judgments}
    assert [key for key, score in scores.items() if score == -1] == [(question, turn)]
    assert len(scores) == 6
    assert "1 of 6 judgments have no verdict" in capsys.readouterr().out
    received = [r["received"] for r in recover_records(bench.replies("judge")) if "received" in r]
    body = bad.partition(b"\r\n\r\n")[2]
    assert [text.encode("utf-8", "surrogateescape") for text in received] == [body] * 2


@pytest.mark.parametrize("parallel", [1, 3])
def test_what_is_no_judge_at_all_is_told_from_one(parallel: int, tmp_path: Path) -> None:
    bench = write_bench(tmp_path, "alpha")
    references = write_references(tmp_path)
    settings: dict[str, Any] = {"output_dir": bench.path, "request": FAST, "parallel": parallel}
    with (
        hostile_server(UNREADABLE["a page"]) as server,
        pytest.raises(ValueError, match="at last with an answer that is no chat completion"),
    ):
        commands.judge(server.url, "judge", references, **settings)
    assert len(server.requests) <= 1 + 2 * (2 + parallel)
    assert not bench.judgments("judge", "single").exists()
    assert not bench.replies("judge").exists()


@given(text=anything)
def test_any_text_comes_back_from_a_file(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("lines") / "records.jsonl"
    kept = joined(text)
    for written in (kept, "after"):
        append_record(file, {"text": written})
    assert [record["text"] for _, record in read_records(file)] == [kept, "after"]
    assert recover_records(file) == [{"text": kept}, {"text": "after"}]
    file.read_bytes().decode("utf-8")


@given(text=anything)
def test_any_text_of_a_completion_is_kept(text: str) -> None:
    assert completion_text(completion(text)) == joined(text)
    readable(text).encode("utf-8")


@given(text=anything, other=anything)
def test_any_answer_can_be_judged(
    text: str, other: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Answers may come from elsewhere; the judge is sent text, and the next run knows it."""
    directory = tmp_path_factory.mktemp("bench")
    bench = write_bench(directory, "alpha")
    records = [answer_record(q["question_id"], "alpha", [text, other]) for q in QUESTIONS]
    write_lines(bench.answers("alpha"), records)
    assert load_answers(bench.answers("alpha"))[1] == (joined(text), joined(other))
    references = write_references(directory)
    with hostile_server(said(b'"[[7]]"')) as server:
        for _ in range(2):
            commands.judge(
                server.url, "judge", references, limit=1, output_dir=bench.path, request=FAST
            )
        bodies = [r.partition(b"\r\n\r\n")[2] for r in server.requests if r.startswith(b"POST")]
    assert len(bodies) == 2
    for body in bodies:
        json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8")


BAD_LINES: dict[str, str] = {
    "huge number": '{"question_id": ' + "9" * 5000 + "}",
    "nested lists": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "half of a pair": '{"question_id": 1, "category": "a", "turns": ["b \\ud800"]}',
    "half in the category": '{"question_id": 1, "category": "\\udfff", "turns": ["b"]}',
    "large id": '{"question_id": 99999999999999999999, "category": "a", "turns": ["b"]}',
    "infinite id": '{"question_id": 1e999, "category": "a", "turns": ["b"]}',
    "no id": '{"question_id": NaN, "category": "a", "turns": ["b"]}',
    "true": '{"question_id": true, "category": "a", "turns": ["b"]}',
    "a list": "[]",
    "a number": "7",
    "NUL": "\0",
    "turns of numbers": '{"question_id": 1, "category": "a", "turns": [1e999]}',
    "turns of text": '{"question_id": 1, "category": "a", "turns": "b"}',
}
READERS: dict[str, Callable[[Path], object]] = {
    "questions": load_questions,
    "answers": load_answers,
    "judgments": load_judgments,
    "prompts": lambda file: load_judge_prompts(file, "single"),
    "replies": lambda file: recover_records(file),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_files_that_cannot_be_read_are_named(name: str, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    good = '{"question_id": 1, "category": "a", "turns": ["b"]}\n'
    file.write_text(good + BAD_LINES[name] + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lines\.jsonl, line 2: ") as error:
        load_questions(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["huge number", "nested lists", "nested objects", "a list", "NUL"])
def test_every_reader_names_its_file(name: str, reader: str, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text(BAD_LINES[name] + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lines\.jsonl, line 1: "):
        READERS[reader](file)


PAIR = {"model_1": "a", "model_2": "b", "g1_winner": "tie", "g2_winner": "tie"}


@pytest.mark.parametrize(
    "changed",
    [
        *({"score": value} for value in (True, None, "7", 1e999, float("nan"), 10**400, -1e9)),
        *({"turn": value} for value in (True, None, "1", 1.5)),
        *({"model": value} for value in (None, 7, ["a"])),
        *(
            {"model_1": "a", "model_2": "b", "g1_winner": w, "g2_winner": w}
            for w in ("x", "", None)
        ),
    ],
)
def test_judgments_of_another_shape(changed: dict[str, Any], tmp_path: Path) -> None:
    judgment = {"question_id": 1, "turn": 1, "model": "a", "score": 7.0}
    file = write_lines(tmp_path / "judgments.jsonl", [judgment, {**judgment, **changed}])
    with pytest.raises(ValueError, match=r"judgments\.jsonl, line 2: a (judgment|winner)"):
        load_judgments(file)
