"""Prompts for the judge: one for each way of judging, kind of question, and turn.

The file format is FastChat's ``judge_prompts.jsonl``. Published MT-Bench scores were made with that
very file, and a judge's scores move with its words; so scores compare with published ones only if
that file is given. The prompts that come with the package ask for the same things in other words,
for comparing one's own models with each other.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import Formatter

from duquant.evaluation.mt_bench.bench_directory import Mode
from duquant.evaluation.mt_bench.json_lines import Record, read_records
from duquant.evaluation.mt_bench.surrogates import require_whole

OWN_PROMPTS = Path(__file__).with_name("judge_prompts.jsonl")
OWN_PREFIX = "duquant-"
NAMES = {("single", False): "single-v1", ("single", True): "single-math-v1",
         ("pairwise", False): "pair-v2", ("pairwise", True): "pair-math-v1"}  # fmt: skip
"""FastChat's names, by mode and whether a reference answer is shown."""
MULTI_TURN = "-multi-turn"
VERDICT_FORMATS = {"single": "[[rating]]", "pairwise": "[[A]]"}
REFERENCES = {"ref_answer_1", "ref_answer_2"}
FIELDS: dict[tuple[str, int], set[str]] = {
    ("single", 1): {"question", "answer"},
    ("single", 2): {"question_1", "question_2", "answer_1", "answer_2"},
    ("pairwise", 1): {"question", "answer_a", "answer_b"},
    ("pairwise", 2): {
        *("question_1", "question_2"),
        *("answer_a_1", "answer_a_2", "answer_b_1", "answer_b_2"),
    },
}
"""What a template may name, by mode and turn; with a reference also :data:`REFERENCES`."""
Kind = tuple[bool, int]
"""Whether a reference answer is shown, and the turn that is judged, 1 or 2."""


@dataclass(frozen=True)
class JudgePrompt:
    """What a judge is asked.

    Attributes:
        name: its name, which the judgments carry.
        system: system prompt.
        template: user prompt with names in braces.
    """

    name: str
    system: str
    template: str


def load_judge_prompts(path: Path | None, mode: Mode) -> dict[Kind, JudgePrompt]:
    """The four prompts of a mode.

    Args:
        path: a file in FastChat's format, ``None`` for the prompts of this package.
        mode: scores, or comparisons.

    Raises:
        ValueError: if one is missing or malformed, naming the file.
    """
    file, prefix = (OWN_PROMPTS, OWN_PREFIX) if path is None else (path, "")
    stored = {record.get("name"): (number, record) for number, record in read_records(file)}
    prompts = {}
    for needs_reference, turn in product((False, True), (1, 2)):
        name = prefix + NAMES[mode, needs_reference] + (MULTI_TURN if turn == 2 else "")
        if name not in stored:
            raise ValueError(f"{file} has no prompt {name}; {mode} judging needs it")
        number, record = stored[name]
        allowed = FIELDS[mode, turn] | (REFERENCES if needs_reference else set())
        prompts[needs_reference, turn] = _prompt(record, f"{file}, line {number}", mode, allowed)
    return prompts


def _prompt(record: Record, where: str, mode: Mode, allowed: set[str]) -> JudgePrompt:
    for key in ("system_prompt", "prompt_template"):
        if not isinstance(record.get(key), str):
            raise ValueError(f"{where}: {key} must be a text")
        require_whole(record[key], f"{where}: {key}")
    expected = VERDICT_FORMATS[mode]
    if record.get("output_format", expected) != expected:
        raise ValueError(f"{where}: output_format is {record['output_format']}, not {expected}")
    template = record["prompt_template"]
    try:
        named = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"{where}: prompt_template: {error}") from error
    if named - allowed:
        raise ValueError(
            f"{where}: prompt_template names {{{min(named - allowed)}}}; there is "
            f"{', '.join(sorted(allowed))}"
        )
    return JudgePrompt(record["name"], record["system_prompt"], template)
