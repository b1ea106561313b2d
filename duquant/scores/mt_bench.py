"""What a judge of MT-Bench found: scores of one model, wins and losses against others.

A model's average is the mean over all judged turns. Of two models one wins a turn only if it does
in both orders; everything else is a tie. The adjusted win rate counts a tie as half a win.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

SCORES_FOLDER = "mt_bench_scores"
"""Folder of a run that holds a file per judge."""


@dataclass(frozen=True)
class ModelScore:
    """Mean scores of a model, from 1 to 10; ``None`` where nothing was judged.

    Attributes:
        model: its name.
        categories: mean over both turns, by category.
        turn_1: mean of first turns.
        turn_2: mean of second turns.
        average: mean of all turns.
        questions: questions with a scored turn.
        judged: turns that were scored.
        malformed: turns whose judgment had no score.
    """

    model: str
    categories: dict[str, float]
    turn_1: float | None
    turn_2: float | None
    average: float | None
    questions: int
    judged: int
    malformed: int


@dataclass
class Tally:
    """Outcomes of a model's matches.

    Attributes:
        win: turns won in both orders.
        tie: turns with any other outcome.
        loss: turns lost in both orders.
    """

    win: int = 0
    tie: int = 0
    loss: int = 0

    def count(self, outcome: str) -> None:
        """Add one outcome: "win", "tie" or "loss"."""
        setattr(self, outcome, getattr(self, outcome) + 1)

    def rate(self) -> float | None:
        """Adjusted win rate, 0 to 1: ``(win + tie / 2) / (win + tie + loss)``."""
        total = self.win + self.tie + self.loss
        return (self.win + self.tie / 2) / total if total else None


@dataclass
class PairScore:
    """How a model did against all its opponents.

    Attributes:
        model: its name.
        overall: all its matches.
        categories: the same by category.
        malformed: matches with a judgment that had no verdict; they count nowhere else.
    """

    model: str
    overall: Tally = field(default_factory=Tally)
    categories: dict[str, Tally] = field(default_factory=dict)
    malformed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the rates."""
        plain = asdict(self)
        total = self.overall.win + self.overall.tie + self.overall.loss
        plain["win_rate"] = self.overall.win / total if total else None
        plain["loss_rate"] = self.overall.loss / total if total else None
        plain["win_rate_adjusted"] = self.overall.rate()
        return plain
