"""What an evaluation is asked for."""

from dataclasses import dataclass
from pathlib import Path

from duquant.evaluation.loaded_model import Dtype
from duquant.nn.execution import Backend

BatchSize = int | str


@dataclass(frozen=True)
class Request:
    """What is asked for; :func:`duquant.evaluation.command.evaluate` explains every field."""

    model: str
    compare: str | None
    tasks: list[str]
    num_fewshot: int | None
    limit: int | None
    batch_size: BatchSize
    data_dir: Path | None
    tasks_dir: Path | None
    mmlu_data_dir: Path | None
    perplexity: dict[str, str]
    sequence_length: int | None
    stride: int | None
    perplexity_windows: int | None
    tokenizer: str | None
    dtype: Dtype
    backend: Backend
    device: str
    seed: int
    output_dir: Path

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.tasks and not self.perplexity:
            raise ValueError("nothing to evaluate: give --tasks, --mmlu or --perplexity")
        for name, least in (("limit", 1), ("batch_size", 1), ("num_fewshot", 0)):
            value = getattr(self, name)
            if value not in (None, "auto") and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
