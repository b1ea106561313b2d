"""Verdicts in a judge's text: ``[[7]]`` or ``[[A]]``.

Judges are told to end with the verdict in double brackets. As in FastChat, the first number in
brackets is the score and the letters are looked for in the order A, B, C. A text without a verdict
is malformed: a score of -1, a winner called "error".
"""

import re
from typing import Literal

Winner = Literal["A", "B", "tie", "error"]

NO_SCORE = -1
SCORES = (1.0, 10.0)
"""The scale, both ends included."""
SCORE_PATTERNS = (
    re.compile(r"\[\[(\d+(?:\.\d*)?)\]\]"),
    re.compile(r"[Rr]ating:?\s*\[(\d+(?:\.\d*)?)\]"),
)
"""Double brackets, and what judges write who forget one pair."""


def score(judgment: str) -> float:
    """The score a judgment gives, -1 if none.

    >>> score("Correct and short. Rating: [[8]]"), score("Rating: [7.5]"), score("I cannot tell.")
    (8.0, 7.5, -1)
    """
    for pattern in SCORE_PATTERNS:
        found = pattern.search(judgment)
        if found:
            value = float(found[1])
            return value if SCORES[0] <= value <= SCORES[1] else NO_SCORE
    return NO_SCORE


def winner(judgment: str) -> Winner:
    """The answer a judgment prefers.

    >>> winner("B is wrong: [[A]]"), winner("[[C]]"), winner("Both are fine.")
    ('A', 'tie', 'error')
    """
    verdicts: tuple[tuple[str, Winner], ...] = (("[[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie"))
    return next((name for mark, name in verdicts if mark in judgment), "error")
