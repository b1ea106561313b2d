"""A judge sees what it must, is asked nothing twice, and leaves judgments FastChat can read."""

from pathlib import Path
from typing import Any

import pytest

from duquant.evaluation.mt_bench import commands
from duquant.evaluation.mt_bench.answers import answer_record
from duquant.evaluation.mt_bench.bench_directory import BenchDirectory
from duquant.evaluation.mt_bench.endpoint import RequestPolicy
from duquant.evaluation.mt_bench.verdicts import score
from tests.chat_bench import (
    QUESTIONS,
    answer_turns,
    read_lines,
    write_bench,
    write_lines,
    write_references,
)
from tests.judge_server import KEY, JudgeServer, judge_server

FAST = RequestPolicy(retries=1, first_delay=0.0, timeout=5.0)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def bench(tmp_path: Path) -> BenchDirectory:
    return write_bench(tmp_path, "alpha", "beta")


def run(server: JudgeServer, bench: BenchDirectory, **options: Any) -> list[dict[str, Any]]:
    """Judge, and read the judgments."""
    references = write_references(bench.path.parent)
    settings: dict[str, Any] = {"output_dir": bench.path, "request": FAST, **options}
    commands.judge(server.url, "org/judge", references, **settings)
    return read_lines(bench.judgments("org/judge", options.get("mode", "single")))


def test_scores_in_fastchats_schema(bench: BenchDirectory) -> None:
    with judge_server("No. [[2]]") as server:
        records = run(server, bench, models="alpha")
    assert [(r["question_id"], r["turn"], r["score"]) for r in records] == [
        *[(1, 1, 2.0), (1, 2, 7.0), (2, 1, 7.0), (2, 2, 7.0), (3, 1, 7.0), (3, 2, 7.0)]
    ]
    names = {"question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"}
    assert all(set(record) == names for record in records)
    assert records[0]["judge"] == ["org/judge", "duquant-single-v1"]
    assert records[3]["judge"] == ["org/judge", "duquant-single-math-v1-multi-turn"]
    assert bench.judgments("org/judge", "single").name == "org--judge_single.jsonl"


def test_the_judge_sees_question_answer_and_reference(bench: BenchDirectory) -> None:
    with judge_server() as server:
        run(server, bench, models="alpha")
    prompts = server.user_prompts
    assert "Write: {hello}." in prompts[0]
    assert "alpha on 1, turn 1" in prompts[0]
    assert "turn 2" not in prompts[0]
    second_turn = ["Write: {hello}.", "alpha on 1, turn 1", "Shorter.", "alpha on 1, turn 2"]
    assert all(text in prompts[1] for text in second_turn)
    assert "It is 4." in prompts[2]
    assert all(text in prompts[3] for text in ("It is 4.", "It is 6.", "alpha on 2, turn 2"))
    assert not any("It is" in prompts[index] for index in (0, 1, 4, 5))


def test_pairs_meet_in_both_orders(bench: BenchDirectory) -> None:
    with judge_server("[[A]]", "[[B]]", "[[A]]", "[[A]]", "[[C]]", "[[B]]") as server:
        records = run(server, bench, mode="pairwise")
    winners = [(record["g1_winner"], record["g2_winner"]) for record in records]
    assert winners[:3] == [("model_1", "model_1"), ("model_1", "model_2"), ("tie", "model_1")]
    first, second = server.user_prompts[:2]
    assert first.index("alpha on 1") < first.index("beta on 1")
    assert second.index("beta on 1") < second.index("alpha on 1")
    expected = {"question_id", "model_1", "model_2", "judge", "turn", "tstamp"}
    expected |= {f"g{g}_{n}" for g in (1, 2) for n in ("winner", "user_prompt", "judgment")}
    assert all(set(record) == expected for record in records)


def test_malformed_judgments_are_asked_for_again_and_then_recorded(bench: BenchDirectory) -> None:
    with judge_server("Hm.", "null", "[[9]]", *["Hm."] * 3) as server:
        records = run(server, bench, models="alpha", limit=1)
        assert [record["score"] for record in records] == [9.0, -1]
        assert records[1]["judgment"] == "Hm."
        assert len(server.requests) == 6
        assert run(server, bench, models="alpha", limit=1) == records
        assert len(server.requests) == 6, "malformed is a result too"


def test_malformed_comparison(bench: BenchDirectory) -> None:
    with judge_server("[[A]]", "Hm.", "Hm.") as server:
        records = run(server, bench, mode="pairwise", attempts=2, limit=1)
    assert (records[0]["g1_winner"], records[0]["g2_winner"]) == ("model_1", "error")


@pytest.mark.parametrize("mode", ["single", "pairwise"])
@pytest.mark.parametrize("answered", range(1, 6))
def test_interrupted_run_asks_nothing_twice(
    bench: BenchDirectory, mode: str, answered: int
) -> None:
    """The endpoint dies after some replies, also between the two orders of a comparison."""
    script = [*["[[C]] [[4]]"] * answered, 500, 500]
    with judge_server(*script) as server:
        with pytest.raises(ValueError, match="failed 2 times"):
            run(server, bench, mode=mode)
        assert len(server.requests) == answered + 2
        server.requests.clear()
        records = run(server, bench, mode=mode)
        in_all = 12  # 3 questions, 2 turns, 2 models or 2 orders
        assert len(server.requests) == in_all - answered
        assert len(records) == (12 if mode == "single" else 6)
        run(server, bench, mode=mode)
        assert len(server.requests) == in_all - answered


def test_torn_files_are_mended(bench: BenchDirectory) -> None:
    with judge_server() as server:
        whole = run(server, bench)
        for file in (bench.judgments("org/judge", "single"), bench.replies("org/judge")):
            file.write_bytes(file.read_bytes()[:-9])
        mended = run(server, bench)
    assert len(server.requests) == 12, "the torn reply is known as it came"
    assert [r["user_prompt"] for r in mended] == [r["user_prompt"] for r in whole]


def test_a_new_answer_is_judged_anew(bench: BenchDirectory) -> None:
    with judge_server() as server:
        run(server, bench)
        turns = {q["question_id"]: answer_turns("alpha", q["question_id"]) for q in QUESTIONS}
        turns[3] = ["new", "newer"]
        records = [answer_record(number, "alpha", said) for number, said in turns.items()]
        write_lines(bench.answers("alpha"), records)
        server.requests.clear()
        judgments = run(server, bench)
        assert len(server.requests) == 2
    assert len(judgments) == 12
    assert sum("newer" in judgment["user_prompt"] for judgment in judgments) == 1


def test_requests_at_a_time(bench: BenchDirectory) -> None:
    with judge_server() as server:
        records = run(server, bench, parallel=4)
    assert len(records) == len({(r["question_id"], r["turn"], r["model"]) for r in records}) == 12
    assert len(server.requests) == 12


def test_baseline(bench: BenchDirectory) -> None:
    write_bench(bench.path.parent, "gamma")
    with judge_server() as server:
        records = run(server, bench, mode="pairwise", baseline="alpha", limit=1)
        with pytest.raises(ValueError, match="baseline is alpha, but only --mode pairwise"):
            run(server, bench, baseline="alpha")
        with pytest.raises(ValueError, match="nothing to compare with alpha"):
            run(server, bench, mode="pairwise", models="alpha", baseline="alpha")
    pairs = {(record["model_1"], record["model_2"]) for record in records}
    assert pairs == {("beta", "alpha"), ("gamma", "alpha")}


def test_missing_answers(bench: BenchDirectory) -> None:
    with judge_server() as server:
        with pytest.raises(ValueError, match=r"no answers of delta.*alpha, beta"):
            run(server, bench, models="alpha,delta")
        write_lines(bench.answers("beta"), [answer_record(1, "beta", ["only one"])])
        with pytest.raises(ValueError, match="beta has given 1 of 2 turns of question 1"):
            run(server, bench)
    assert server.requests == []
    assert not (bench.path / "model_judgment").exists()


@pytest.mark.parametrize(
    ("judgment", "expected"),
    [
        ("Rating: [[10]]", 10),
        ("Rating: [[7.5]] and [[3]]", 7.5),
        ("Rating: [6]", 6),
        ("rows[5] is wrong", -1),
        ("[[11]]", -1),
        ("[[rating]]", -1),
        ("", -1),
    ],
)
def test_score_of_a_judgment(judgment: str, expected: float) -> None:
    assert score(judgment) == expected
