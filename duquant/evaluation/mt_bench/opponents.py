"""Whose answers are judged: models one by one, or in pairs."""

from itertools import combinations

from duquant.evaluation.mt_bench.answers import Answers, load_answers
from duquant.evaluation.mt_bench.bench_directory import BenchDirectory, Mode

Opponents = tuple[str, ...]
"""One model to be scored, or two to be compared."""


def choose_opponents(
    bench: BenchDirectory, mode: Mode, models: list[str], baseline: str | None
) -> list[Opponents]:
    """Models to score; or pairs to compare, each model with the baseline, or each with each.

    Args:
        bench: where the answers are.
        mode: scores or comparisons.
        models: names, none for all that have answered.
        baseline: the model to compare with, if any.

    Raises:
        ValueError: if a model has not answered, or nothing is left to judge.
    """
    known = bench.models()
    chosen = models or known
    if not chosen:
        raise ValueError(f"{bench.path} holds no answers; mtbench answer gives them")
    for name in [*chosen, *([baseline] if baseline else [])]:
        if name not in known:
            raise ValueError(
                f"there are no answers of {name} in {bench.path}; there are those of "
                f"{', '.join(known) or 'nobody'}"
            )
    if mode == "pairwise":
        return _pairs(chosen, baseline)
    if baseline is not None:
        raise ValueError(f"baseline is {baseline}, but only --mode pairwise compares")
    return [(name,) for name in chosen]


def answers_of(bench: BenchDirectory, opponents: list[Opponents]) -> dict[str, Answers]:
    """Answers of every model that is judged.

    Raises:
        ValueError: naming the file and the line that is malformed.
    """
    names = sorted({name for models in opponents for name in models})
    return {name: load_answers(bench.answers(name)) for name in names}


def _pairs(models: list[str], baseline: str | None) -> list[Opponents]:
    if baseline is None:
        pairs: list[Opponents] = list(combinations(models, 2))
    else:
        pairs = [(model, baseline) for model in models if model != baseline]
    if not pairs:
        raise ValueError(
            f"there is nothing to compare with {', '.join(models)}: pairwise judging needs two "
            f"models that have answered"
        )
    return pairs
