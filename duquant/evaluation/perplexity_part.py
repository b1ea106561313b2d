"""Perplexity of a model on one corpus, as a part of an evaluation."""

import hashlib
import time
from collections.abc import Callable
from typing import Any

from duquant.data.datamodule import CalibrationDataModule
from duquant.evaluation.perplexity import describe_windows
from duquant.scores.statistics import PERPLEXITY, Measurement, perplexity_of


def measure_perplexity(
    model: Any,
    texts: CalibrationDataModule,
    part: str,
    on_windows: Callable[[int], Any] | None = None,
) -> Measurement:
    """Perplexity with the standard error over windows.

    Args:
        model: what is measured, ready.
        texts: knows the windows of the corpus.
        part: :data:`PERPLEXITY` and the corpus.
        on_windows: told how many windows have just been scored.
    """
    name, started = part.removeprefix(PERPLEXITY), time.monotonic()
    windows = texts.corpus_windows(name)
    losses = model.losses(windows, texts.stride, on_windows)
    return Measurement(
        name=part,
        version=texts.protocol(name).title,
        num_fewshot=0,
        num_items=len(losses),
        available_items=len(losses),
        metrics={"perplexity": perplexity_of(losses)},
        seconds=time.monotonic() - started,
        backend=model.arithmetic,
    )


def corpus_digest(texts: CalibrationDataModule, name: str) -> dict[str, Any]:
    """What decides a perplexity besides the model: tokens, windows and protocol of a corpus."""
    return {
        "tokens": hashlib.sha256(texts.corpus_windows(name).numpy().tobytes()).hexdigest()[:16],
        "length": texts.sequence_length,
        "stride": texts.stride,
        "protocol": texts.protocol(name).title,
    }


def describe_protocol(texts: CalibrationDataModule, corpus: str) -> str:
    """What has to be said of a corpus's perplexity for it to be repeated."""
    cut = f", at most the first {texts.validation_windows}" if texts.validation_windows else ""
    windows = describe_windows(texts.sequence_length, texts.stride)
    return f"{texts.protocol(corpus).title}; {windows}{cut}"
