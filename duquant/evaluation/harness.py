"""lm-eval measures a model that is already in memory, one task at a time.

:class:`EvaluatedModel` is lm-eval's ``HFLM`` with four differences: log-likelihoods are computed
without a KV cache, text is generated with the packed one where the model quantizes K and V to at
most 8 bits, batches on a CPU have about equally many tokens, and it says how far it is and how many
prompts were too long.
"""

import contextlib
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from duquant.evaluation.loaded_model import ModelSource
from duquant.evaluation.mmlu import FittingTask
from duquant.evaluation.options import BatchSize
from duquant.evaluation.perplexity import model_losses
from duquant.evaluation.prompting import Prompting
from duquant.evaluation.silence import silence
from duquant.model.execution import describe_execution
from duquant.model.tokenizer import require_known_tokens
from duquant.nn.packed_cache import PackedCache
from duquant.scores.statistics import Measurement, Metric

BOOTSTRAP_ITERATIONS = 1000
"""Resamplings for the standard error of what is no mean, as LAMBADA's perplexity."""
TOKENS_AT_ONCE = 1024
"""Tokens of a batch on the CPU: more do not go faster, and then leave its caches."""


class EvaluatedModel(HFLM):
    """A model as lm-eval sees it.

    Args:
        source: where it comes from.
        model: it, loaded.
        batch_size: rows of a batch; "auto" is what fits on a GPU, and :data:`TOKENS_AT_ONCE`
            tokens on the CPU.
        on_request: called after every answered request.
    """

    def __init__(
        self,
        source: ModelSource,
        model: Any,
        batch_size: BatchSize = "auto",
        on_request: Callable[[], Any] | None = None,
    ) -> None:
        self.vocab_size = source.vocab_size
        with silence():
            super().__init__(
                pretrained=model,
                tokenizer=source.tokenizer,
                max_length=source.max_length,
                batch_size=batch_size,
            )
        self.num_truncated = 0
        self._next_batch = self._rows = 0
        self.set_cache_hook(Ticker(on_request))

    def tok_encode(self, string: str, *args: Any, **options: Any) -> list[int]:
        """Token ids of a text.

        Raises:
            ValueError: if one of them is none of the model's.
        """
        tokens: list[int] = super().tok_encode(string, *args, **options)
        require_known_tokens(tokens, self.vocab_size, self.tokenizer)
        return tokens

    def _model_call(self, inps: Tensor, **unused: Any) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(input_ids=inps, use_cache=False).logits
        return logits

    def _model_generate(self, context: Tensor, *args: Any, **options: Any) -> Any:
        require_known_tokens([int(context.max())], self.vocab_size, self.tokenizer)
        with contextlib.suppress(ValueError):  # full precision, or too many bits
            options["past_key_values"] = PackedCache(self.model)
        return super()._model_generate(context, *args, **options)

    def _batch_scheduler(self, pos: int, requests: Sequence[Any]) -> int:
        """Rows of the batch that the request at ``pos`` is in; requests come longest first."""
        if self.device.type != "cpu":
            return int(super()._batch_scheduler(pos, requests))
        if pos in (0, self._next_batch):
            self._rows = self._detect_batch_size(requests, pos)
            self._next_batch = pos + self._rows
        return self._rows

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        if self.device.type != "cpu":
            return int(super()._detect_batch_size(requests, pos))
        length = sum(map(len, requests[pos][1:])) if requests else self.max_length
        return max(1, TOKENS_AT_ONCE // min(length, int(self.max_length)))

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **options: Any) -> Any:
        longest = self.max_length + 1  # the last token is only predicted
        lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        self.num_truncated += sum(length > longest for length in lengths)
        return super()._loglikelihood_tokens(requests, *args, **options)

    def losses(
        self,
        windows: Tensor,
        num_scored: int | None = None,
        on_windows: Callable[[int], Any] | None = None,
    ) -> list[float]:
        """Losses of windows, as :func:`duquant.evaluation.perplexity.model_losses` has them."""
        found: list[float] = model_losses(self.model, windows, num_scored, on_windows).tolist()
        return found

    @property
    def arithmetic(self) -> str:
        """How the model computes, in words."""
        return describe_execution(self.model)

    @property
    def kv_cache(self) -> str:
        """How text is generated."""
        try:
            return PackedCache(self.model).describe()
        except ValueError:
            return "floating point"

    def holds(self, prompt: str) -> bool:
        """Whether a prompt fits into the context."""
        return len(self.tok_encode(prompt)) <= int(self.max_length)


class Ticker:
    """In the place of lm-eval's cache of answers: it is told every one of them."""

    def __init__(self, on_request: Callable[[], Any] | None) -> None:
        self.on_request = on_request

    def add_partial(self, *answer: Any) -> None:
        """Be told of one answer; nothing is kept."""
        if self.on_request is not None:
            self.on_request()


def measure_task(
    model: Any,
    name: str,
    task: Any,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    prompting: Prompting = Prompting(),
) -> Measurement:
    """Everything lm-eval says about one task.

    Args:
        model: an :class:`EvaluatedModel`, or what a server gives in its place.
        name: the task's name.
        task: the task.
        num_fewshot: examples in a prompt (default: what the task says).
        limit: items at most (default: all).
        seed: of examples and of sampled text.
        prompting: how prompts are put.
    """
    if num_fewshot is not None or task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=seed)
    random.seed(seed)  # lm-eval and its tasks draw from the global generators
    np.random.seed(seed)
    torch.manual_seed(seed)
    if isinstance(task, FittingTask):
        task.fits, task.shots = model.holds, []
    model.num_truncated, started = 0, time.monotonic()
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # no pool of processes for a bootstrap
    with silence():
        results = evaluator.evaluate(
            lm=model,
            task_dict={"tasks": {name: task}},
            limit=limit,
            bootstrap_iters=BOOTSTRAP_ITERATIONS,
            log_samples=True,
            **asdict(prompting),
        )
    measured = _measurement(name, task, results)
    return replace(
        measured,
        num_truncated=model.num_truncated,
        seconds=time.monotonic() - started,
        backend=model.arithmetic,
        kv_cache=model.kv_cache if task.OUTPUT_TYPE == "generate_until" else "none",
    )


def _measurement(name: str, task: Any, results: dict[str, Any]) -> Measurement:
    samples = results["samples"][name]
    metrics = {}
    for key, value in results["results"][name].items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr"):
            continue
        stderr = results["results"][name].get(f"{metric}_stderr,{chosen}")
        rows = [sample for sample in samples if sample["filter"] == chosen]
        label = metric if chosen == "none" else f"{metric} ({chosen})"
        has_error = isinstance(stderr, (int, float)) and math.isfinite(stderr)
        error = float(stderr) if has_error else None
        is_better = results["higher_is_better"][name].get(metric) is not False
        metrics[label] = _metric(rows, metric, Metric(float(value), error, is_better))
    first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    published = (task.config.metadata or {}).get("published_items")
    return Measurement(
        name=name,
        version=str(results["versions"].get(name)),
        num_fewshot=int(results["n-shot"].get(name) or 0),
        num_items=len(first),
        available_items=int(results["n-samples"][name]["original"]),
        published_items=published,
        metrics=metrics,
        fewest_shots=min(task.shots) if isinstance(task, FittingTask) and task.shots else None,
        log_likelihoods=_log_likelihoods(first, task.OUTPUT_TYPE),
    )


def _metric(samples: list[dict[str, Any]], name: str, metric: Metric) -> Metric:
    """The metric with its values per item, if it is their mean or an exponential of it."""
    values = [sample.get(name) for sample in samples]
    if not values or not all(isinstance(v, (bool, int, float, np.number)) for v in values):
        return metric
    numbers = [float(v) for v in values]  # type: ignore[arg-type]
    mean = math.fsum(numbers) / len(numbers)
    if math.isclose(mean, metric.value, rel_tol=1e-6, abs_tol=1e-9):
        return replace(metric, per_item=numbers)
    if mean < 0 and math.isclose(math.exp(min(-mean, 700.0)), metric.value, rel_tol=1e-6):
        return replace(metric, per_item=[-v for v in numbers], is_exponential=True)
    return metric


def _log_likelihoods(samples: list[dict[str, Any]], kind: str) -> list[list[float]]:
    """Log-likelihood of every choice of every item."""
    if kind not in ("multiple_choice", "loglikelihood"):
        return []
    return [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
