"""Matches: everything a judge is to read, with the prompts written out.

A match is one turn of one question, of one model or of two. Two models meet in both orders, because
judges prefer what they read first (Zheng et al. 2023, section 3.3). The second turn shows the whole
conversation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from duquant.evaluation.mt_bench.answers import Answers
from duquant.evaluation.mt_bench.judge_prompts import JudgePrompt, Kind
from duquant.evaluation.mt_bench.opponents import Opponents
from duquant.evaluation.mt_bench.questions import Question
from duquant.evaluation.mt_bench.surrogates import readable

MatchKey = tuple[int, int, Opponents]
"""Question, turn and models."""


@dataclass(frozen=True)
class Match:
    """Something to judge.

    Attributes:
        question_id: which question.
        turn: 1 or 2.
        models: one, or two.
        prompt: how the judge is asked.
        user_prompts: prompts written out: one, or one per order of the two models.
    """

    question_id: int
    turn: int
    models: Opponents
    prompt: JudgePrompt
    user_prompts: tuple[str, ...]

    @property
    def key(self) -> MatchKey:
        """What it is about, however it is asked."""
        return self.question_id, self.turn, self.models


def make_matches(
    questions: list[Question],
    opponents: list[Opponents],
    answers: dict[str, Answers],
    references: Answers,
    prompts: dict[Kind, JudgePrompt],
) -> list[Match]:
    """Every match of some models over some questions, question by question.

    Args:
        questions: what was asked; questions of one turn have one match.
        opponents: models to score, or pairs to compare.
        answers: by model.
        references: reference answers.
        prompts: by whether a reference is shown, and turn.

    Raises:
        ValueError: if an answer or a reference answer is missing.
    """
    return [
        _match(question, turn, models, answers, references, prompts)
        for question in questions
        for models in opponents
        for turn in range(1, min(2, len(question.turns)) + 1)
    ]


def _match(
    question: Question,
    turn: int,
    models: Opponents,
    answers: dict[str, Answers],
    references: Answers,
    prompts: dict[Kind, JudgePrompt],
) -> Match:
    prompt = prompts[question.needs_reference, turn]
    shown = dict(_texts("question", question.turns, turn))
    if question.needs_reference:
        reference = _turns(references, question, "the reference answers have")
        shown |= {f"ref_answer_{index}": text for index, text in enumerate(reference, start=1)}
    given = [_turns(answers[m], question, f"model {m} has given") for m in models]
    orders = [given] if len(models) == 1 else [given, given[::-1]]
    labels = ["answer"] if len(models) == 1 else ["answer_a", "answer_b"]
    filled = []
    for order in orders:
        said = {
            name: text
            for label, turns in zip(labels, order, strict=True)
            for name, text in _texts(label, turns, turn)
        }
        filled.append(readable(prompt.template.format(**shown, **said)))
    return Match(question.question_id, turn, models, prompt, tuple(filled))


def _turns(answers: Answers, question: Question, who: str) -> tuple[str, ...]:
    turns = answers.get(question.question_id, ())
    if len(turns) < len(question.turns):
        raise ValueError(
            f"{who} {len(turns)} of {len(question.turns)} turns of question {question.question_id}"
        )
    return turns


def _texts(label: str, turns: tuple[str, ...], turn: int) -> Iterator[tuple[str, str]]:
    """``answer`` in the first turn; ``answer_1`` and ``answer_2`` in the second."""
    if turn == 1:
        yield label, turns[0]
    else:
        yield f"{label}_1", turns[0]
        yield f"{label}_2", turns[1]
