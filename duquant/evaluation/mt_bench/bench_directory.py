"""Where everything lies: FastChat's layout, so that its tools find the files.

Link or copy the directory to FastChat's ``data/mt_bench`` and they read questions, answers and
judgments as their own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

Mode = Literal["single", "pairwise"]


class AnswerSettings(TypedDict):
    """How a model was asked, as far as it is told."""

    model: str
    chat_template: str
    max_new_tokens: int
    seed: int
    dtype: str


class RunPlace(TypedDict):
    """Which run quantized a model, relative to the bench."""

    run: str


@dataclass(frozen=True)
class BenchDirectory:
    """Paths below one directory.

    Attributes:
        path: the directory; it need not exist.
    """

    path: Path

    @property
    def questions(self) -> Path:
        """The questions that were answered."""
        return self.path / "question.jsonl"

    def answers(self, model_id: str) -> Path:
        """A model's answers."""
        return self.path / "model_answer" / f"{model_id}.jsonl"

    def settings(self, model_id: str) -> Path:
        """How a model was asked."""
        return self.path / "model_answer" / f"{model_id}.settings.json"

    def run(self, model_id: str) -> Path:
        """Which run quantized a model, if one did."""
        return self.path / "model_answer" / f"{model_id}.run.json"

    def models(self) -> list[str]:
        """Names of the models that have answered."""
        return sorted(file.stem for file in (self.path / "model_answer").glob("*.jsonl"))

    def judgments(self, judge: str, mode: Mode) -> Path:
        """A judge's scores, or comparisons."""
        kind = "single" if mode == "single" else "pair"
        return self.path / "model_judgment" / f"{file_name(judge)}_{kind}.jsonl"

    def replies(self, judge: str) -> Path:
        """Everything a judge ever wrote, by what it was asked; beside it, all that came."""
        return self.path / "model_judgment" / "replies" / f"{file_name(judge)}.jsonl"

    def judges(self) -> list[str]:
        """File names of the judges that have judged."""
        files = [f.stem for f in (self.path / "model_judgment").glob("*.jsonl")]
        known = [f for f in files if f.endswith(("_single", "_pair"))]
        return sorted({name.rpartition("_")[0] for name in known})

    def results(self, judge: str) -> Path:
        """The numbers that ``show`` prints."""
        return self.path / f"results_{file_name(judge)}.json"


def file_name(judge: str) -> str:
    """A judge's name as part of a file's."""
    return judge.replace("/", "--")
