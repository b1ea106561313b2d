"""Scores of a run's model, kept in the run: its report needs no other directory.

A bench remembers which run each of its models comes from. Whenever something was judged or shown,
every such run gets what its judge found in ``mt_bench_scores/JUDGE-….json``: the scores of all
models of the bench to compare with, the run's own comparisons with each of them, and how each was
asked. A run that was moved, or whose model is no longer the one that answered, is left alone.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from duquant.atomic_files import write_json
from duquant.evaluation.mt_bench.bench_directory import (
    AnswerSettings,
    BenchDirectory,
    Mode,
    RunPlace,
    file_name,
)
from duquant.evaluation.mt_bench.chat_template import TEMPLATES
from duquant.evaluation.mt_bench.json_lines import Record
from duquant.evaluation.mt_bench.judge_prompts import OWN_PREFIX
from duquant.evaluation.mt_bench.judgments import load_judgments
from duquant.evaluation.mt_bench.scores import Categories, score_models, score_pairs
from duquant.evaluation.mt_bench.served_chat import SERVED
from duquant.json_files import read_json
from duquant.model.checkpoint import Checkpoint
from duquant.scores.mt_bench import SCORES_FOLDER

SUMMARY = "summary.json"


@dataclass(frozen=True)
class _Judged:
    """Everything one judge wrote."""

    single: list[Record]
    pairwise: list[Record]

    @classmethod
    def read(cls, bench: BenchDirectory, judge: str) -> "_Judged":
        """A judge's records of both modes; none where it judged nothing."""

        def records(mode: Mode) -> list[Record]:
            file = bench.judgments(judge, mode)
            return load_judgments(file) if file.is_file() else []

        return cls(records("single"), records("pairwise"))

    def has(self, model: str) -> bool:
        """Whether the model was judged in any of them."""
        return any(
            model in (record.get("model"), record.get("model_1"), record.get("model_2"))
            for record in (*self.single, *self.pairwise)
        )


def remember_run(bench: BenchDirectory, model_id: str, model: Path) -> None:
    """Write down which run a model comes from, if one has left it.

    Args:
        bench: where the model answers.
        model_id: what it is called there.
        model: its directory.
    """
    run = model.resolve().parent
    if model.resolve().name == "model" and (run / SUMMARY).is_file():
        write_json(bench.run(model_id), {"run": os.path.relpath(run, bench.path.resolve())})


def tell_runs(bench: BenchDirectory, judge: str, categories: Categories) -> list[Path]:
    """Write what a judge found into the runs of the judged models.

    Args:
        bench: where it was found.
        judge: the judge's name.
        categories: category of every question.

    Returns:
        The runs.
    """
    judged, told = _Judged.read(bench, judge), []
    for model in filter(judged.has, bench.models()):
        run = _run_of(bench, model)
        if run is None:
            continue
        found = _found(bench, judged, model, judge, categories)
        decisive = [judge, found["questions"], found["asked"][model]]
        digest = sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
        write_json(run / SCORES_FOLDER / f"{file_name(judge)}-{digest}.json", found)
        told.append(run)
    return told


def _run_of(bench: BenchDirectory, model: str) -> Path | None:
    """The run whose model has answered, as long as it is still there."""
    file = bench.run(model)
    if not file.is_file():
        return None
    run = Path(os.path.normpath(bench.path.resolve() / read_json(file, RunPlace)["run"]))
    if not (run / SUMMARY).is_file() or not (run / "model" / "config.json").is_file():
        return None
    answered = read_json(bench.settings(model), AnswerSettings)["model"]
    return run if Checkpoint(run / "model").digest() == answered else None


def _found(
    bench: BenchDirectory, judged: _Judged, model: str, judge: str, categories: Categories
) -> dict[str, Any]:
    """What is written, plain values."""
    matches = [r for r in judged.pairwise if model in (r["model_1"], r["model_2"])]
    opponents = dict.fromkeys(n for r in matches for n in (r["model_1"], r["model_2"]))
    against = {
        opponent: next(s for s in score_pairs(matches, categories, opponent) if s.model == model)
        for opponent in opponents
        if opponent != model
    }
    scores = score_models(judged.single, categories)
    return {
        "judge": judge,
        "prompts": _prompts([*judged.single, *matches]),
        "questions": len(categories),
        "model": model,
        "asked": {name: _asked(bench, name) for name in (model, *(s.model for s in scores))},
        "single": [asdict(score) for score in scores],
        "pairwise": {opponent: asdict(score) for opponent, score in against.items()},
    }


def _prompts(records: Sequence[Record]) -> str:
    """Whose prompts the judge was given."""
    judges = [record.get("judge") for record in records]
    names = [str(judge[-1]) if judge and isinstance(judge, list) else "" for judge in judges]
    own = {name.startswith(OWN_PREFIX) for name in names}
    if own == {True}:
        return "the judge prompts of duquant, which compare with no published score"
    return "given judge prompts" if own == {False} else "judge prompts of several kinds"


def _asked(bench: BenchDirectory, model: str) -> str:
    """How a model was asked, in words."""
    file = bench.settings(model)
    if not file.is_file():
        return "asked elsewhere"
    settings = read_json(file, AnswerSettings)
    if settings["chat_template"] == SERVED:
        return (
            f"through an endpoint, by its chat template, at most {settings['max_new_tokens']} "
            f"tokens, seed {settings['seed']}"
        )
    names = (name for name, source in TEMPLATES.items() if source == settings["chat_template"])
    template = next(names, "the tokenizer's own")
    return (
        f"chat template {template}, at most {settings['max_new_tokens']} tokens, "
        f"seed {settings['seed']}, {settings['dtype']} dtype"
    )
