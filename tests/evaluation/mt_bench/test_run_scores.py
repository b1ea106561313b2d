"""Scores find their way into the runs they are of, and only there."""

from pathlib import Path
from typing import Any

import pytest

from duquant.atomic_files import write_json
from duquant.evaluation.mt_bench.bench_directory import BenchDirectory
from duquant.evaluation.mt_bench.chat_template import TEMPLATES
from duquant.evaluation.mt_bench.run_scores import remember_run, tell_runs
from duquant.json_files import read_json
from duquant.model.checkpoint import Checkpoint
from duquant.scores.mt_bench import SCORES_FOLDER
from tests.chat_bench import QUESTIONS, write_bench, write_chat_model, write_lines

CATEGORIES = {q["question_id"]: q["category"] for q in QUESTIONS}


def write_run(directory: Path, bench: BenchDirectory, name: str, **model: Any) -> Path:
    """A run whose model has answered."""
    folder = write_chat_model(directory / name / "model", **model)
    write_json(directory / name / "summary.json", {})
    remember_run(bench, name, folder)
    settings = {"model": Checkpoint(folder).digest(), "chat_template": TEMPLATES["mistral"]}
    more = {"max_new_tokens": 8, "seed": 0, "dtype": "auto"}
    write_json(bench.settings(name), {**settings, **more})
    return directory / name


@pytest.fixture
def bench(tmp_path: Path) -> BenchDirectory:
    """Three models that were judged: scores of two questions, a comparison of each pair."""
    bench = write_bench(tmp_path, "alpha", "beta", "gamma")
    judge = {"judge": ["gpt-4", "single-v1"], "turn": 1}
    scores = {"alpha": 6.0, "beta": 8.0, "gamma": 4.0}
    write_lines(
        bench.judgments("gpt-4", "single"),
        [
            {**judge, "model": model, "question_id": question, "score": score}
            for model, score in scores.items()
            for question in (1, 3)
        ],
    )
    pair = {"question_id": 1, "judge": ["gpt-4", "pair-v2"], "turn": 1}
    won = {"g1_winner": "model_1", "g2_winner": "model_1"}
    write_lines(
        bench.judgments("gpt-4", "pairwise"),
        [
            {**pair, **won, "model_1": "alpha", "model_2": "gamma"},
            {**pair, **won, "model_1": "beta", "model_2": "alpha"},
            {**pair, **won, "model_1": "beta", "model_2": "gamma"},
        ],
    )
    return bench


def found(run: Path) -> dict[str, Any]:
    (file,) = (run / SCORES_FOLDER).iterdir()
    values: dict[str, Any] = read_json(file)
    return values


def test_every_run_gets_its_scores(tmp_path: Path, bench: BenchDirectory) -> None:
    runs = [write_run(tmp_path / "runs", bench, name) for name in ("alpha", "beta")]
    assert tell_runs(bench, "gpt-4", CATEGORIES) == runs
    values = found(runs[0])
    assert (values["judge"], values["model"], values["questions"]) == ("gpt-4", "alpha", 3)
    assert [score["model"] for score in values["single"]] == ["beta", "alpha", "gamma"]
    assert values["single"][1]["categories"] == {"writing": 6.0, "stem": 6.0}
    assert values["single"][1]["questions"] == 2
    outcomes = {name: score["overall"] for name, score in values["pairwise"].items()}
    assert outcomes == {
        "beta": {"win": 0, "tie": 0, "loss": 1},
        "gamma": {"win": 1, "tie": 0, "loss": 0},
    }
    assert values["prompts"] == "given judge prompts"
    assert values["asked"]["alpha"].startswith("chat template mistral, at most 8 tokens")
    assert values["asked"]["gamma"] == "asked elsewhere"
    assert tell_runs(bench, "gpt-4", CATEGORIES) == runs
    assert found(runs[0]) == values, "told twice, written once"


def test_a_bench_and_its_runs_may_move_together(tmp_path: Path) -> None:
    bench = write_bench(tmp_path / "before", "alpha")
    write_run(tmp_path / "before", bench, "alpha")
    score = {"model": "alpha", "question_id": 1, "turn": 1, "score": 5.0}
    write_lines(bench.judgments("gpt-4", "single"), [{**score, "judge": ["gpt-4", "duquant-x"]}])
    (tmp_path / "before").rename(tmp_path / "after")
    moved = BenchDirectory(tmp_path / "after" / bench.path.name)
    assert tell_runs(moved, "gpt-4", CATEGORIES) == [tmp_path / "after" / "alpha"]
    assert "compare with no published score" in found(tmp_path / "after" / "alpha")["prompts"]


def test_other_models_and_runs_are_left_alone(tmp_path: Path, bench: BenchDirectory) -> None:
    plain = write_chat_model(tmp_path / "plain")
    remember_run(bench, "gamma", plain)
    assert not bench.run("gamma").exists()
    run = write_run(tmp_path, bench, "alpha")
    assert tell_runs(bench, "other judge", CATEGORIES) == []
    write_chat_model(run / "model", hidden_size=128)
    assert tell_runs(bench, "gpt-4", CATEGORIES) == [], "another model has taken its place"
    (run / "summary.json").unlink()
    assert tell_runs(bench, "gpt-4", CATEGORIES) == []
    assert not (run / SCORES_FOLDER).exists()
