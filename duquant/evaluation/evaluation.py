"""One evaluation from its request to its results: check, measure part by part, compare, report."""

import platform
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

from rich.console import Console

from duquant import __version__
from duquant.compute_device import find_device
from duquant.data.datamodule import CalibrationDataModule
from duquant.evaluation.endpoint_model import require_scores
from duquant.evaluation.harness import measure_task
from duquant.evaluation.mmlu import PUBLISHED_ITEMS
from duquant.evaluation.mt_bench.credentials import shown_address
from duquant.evaluation.parts import EvaluationDirectory
from duquant.evaluation.perplexity_part import corpus_digest, describe_protocol, measure_perplexity
from duquant.evaluation.progress import EvaluationProgress
from duquant.evaluation.request import EvaluationRequest
from duquant.evaluation.results_table import notes, print_results
from duquant.evaluation.served_source import ServedSource
from duquant.evaluation.sources import (
    Source,
    arithmetic,
    find_sources,
    find_texts,
    make_ready,
)
from duquant.evaluation.task_list import find_tasks
from duquant.interruption import ToldInterrupt
from duquant.scores.statistics import PERPLEXITY, Measurement, combine, differences
from duquant.terminal import say

PACKAGES = ("torch", "transformers", "lm_eval", "datasets", "tokenizers")
GENERATED = "generate_until"
"""Tasks of this kind need no log-probabilities."""
Measurements = dict[str, Measurement]


class Evaluation:
    """Checks a request at once, and runs it afterwards.

    Args:
        request: what is asked for.
        console: where progress goes.

    Raises:
        ValueError: naming what is wrong; nothing has been written then.
    """

    def __init__(self, request: EvaluationRequest, console: Console) -> None:
        self.request, self.console = request, console
        find_device(request.device)
        self.sources = find_sources(request)
        for source in self.sources:
            request.prompting.require(source.tokenizer, source.name)
        self.tasks = find_tasks(
            request.task_names,
            data_dir=request.folder("data_dir"),
            tasks_dir=request.folder("tasks_dir"),
            mmlu_data_dir=request.folder("mmlu_data_dir"),
            num_fewshot=request.num_fewshot,
        )
        self.labels = [source.label for source in self.sources]
        if len(set(self.labels)) < len(self.labels):
            self.labels[1] += ", compared"
        longest = min(source.max_length for source in self.sources)
        self.texts = [find_texts(source, request, longest) for source in self.sources]
        self._require_scores()
        self.descriptions = [source.description() for source in self.sources]
        self.directory = EvaluationDirectory(request.output)

    def _require_scores(self) -> None:
        """Refuse a server that cannot give what is asked for."""
        scored = [task for task in self.tasks.tasks.values() if task.OUTPUT_TYPE != GENERATED]
        for source in self.sources:
            if isinstance(source, ServedSource) and (scored or self.request.perplexity):
                require_scores(source)

    def settings(self, index: int, name: str) -> dict[str, Any]:
        """What decides one number of model ``index``, besides the model; no paths."""
        request, how = self.request, arithmetic(self.sources[index], self.request)
        if name not in self.tasks.tasks:
            texts = self.texts[index]
            assert texts is not None
            return {**how, **corpus_digest(texts, name.removeprefix(PERPLEXITY))}
        return {
            **how,
            "version": str(self.tasks.tasks[name].VERSION),
            "definition": self.tasks.definitions[name],
            "num_fewshot": request.num_fewshot,
            "limit": request.limit,
            "seed": request.seed,
            **request.prompting.settings(self.sources[index].tokenizer),
            "lm_eval": version("lm_eval"),
        }

    def _key(self, index: int, name: str) -> Mapping[str, Any]:
        return self.directory.key(name, self.descriptions[index], self.settings(index, name))

    def run(self, output: Console) -> dict[str, Any]:
        """Measure what is not measured yet, write the results, print and return them."""
        progress = EvaluationProgress(self.console, self._expected_requests())
        try:
            measured = [
                self._measure(index, source, texts, progress)
                for index, (source, texts) in enumerate(zip(self.sources, self.texts, strict=True))
            ]
        except KeyboardInterrupt:
            progress.say(f"interrupted; the same command continues in {self.directory.path}")
            raise ToldInterrupt from None
        finally:
            progress.close()
        title, groups = f"Evaluation of {self.sources[0].name}", self.tasks.groups
        limit, prompts = self.request.limit, self._prompts()
        print_results(title, self.labels, list(measured), groups, limit, output, prompts)
        for corpus, protocol in self._protocols().items():
            say(f"{corpus}: {protocol}", output)
        results = self._results(measured)
        file, covered = self.directory.write_results(self._words(), results)
        say(f"results: {file}", output)
        for other in covered:
            say(f"they replace {other.name}", output)
        return results

    def _measure(
        self,
        index: int,
        source: Source,
        texts: CalibrationDataModule | None,
        progress: EvaluationProgress,
    ) -> Measurements:
        """All parts of one model; it is loaded if one of them is missing."""
        names = self._parts()
        missing = [name for name in names if not self.directory.has(name, self._key(index, name))]
        lm: Any = make_ready(source, self.request, progress.advance) if missing else None
        if len(missing) < len(names):
            finished = len(names) - len(missing)
            progress.say(f"{source.label}: {finished} of {len(names)} parts are there already")

        def measure(name: str) -> Measurement:
            progress.begin(f"{source.label}, {name}", self._requests(name))
            if name in self.tasks.tasks:
                part = measure_task(
                    lm,
                    name,
                    self.tasks.tasks[name],
                    num_fewshot=self.request.num_fewshot,
                    limit=self.request.limit,
                    seed=self.request.seed,
                    prompting=self.request.prompting,
                )
            else:
                assert texts is not None
                part = measure_perplexity(lm, texts, name, progress.advance)
            progress.finish(f"{source.label}, {name}", part)
            return part

        parts = {
            name: self.directory.part(name, self._key(index, name), partial(measure, name))
            for name in names
        }
        means = {
            group: combine(group, [parts[name] for name in members], PUBLISHED_ITEMS.get(group))
            for group, members in reversed(self.tasks.groups.items())
        }
        together = {**parts, **means}
        return dict(sorted(together.items(), key=lambda part: part[0].startswith(PERPLEXITY)))

    def _parts(self) -> list[str]:
        return [*self.tasks.tasks, *(PERPLEXITY + name for name in self.request.perplexity or {})]

    def _requests(self, name: str) -> int:
        """About how many requests a part has: items times choices, or windows."""
        if name not in self.tasks.tasks:
            texts = self.texts[0]
            assert texts is not None
            return len(texts.corpus_windows(name.removeprefix(PERPLEXITY)))
        task = self.tasks.tasks[name]
        count = len(task.eval_docs)
        first = task.eval_docs[0]
        choices = len(task.doc_to_choice(first)) if task.config.doc_to_choice is not None else 1
        return min(count, self.request.limit or count) * choices

    def _expected_requests(self) -> int:
        return sum(
            self._requests(name)
            for index in range(len(self.sources))
            for name in self._parts()
            if not self.directory.has(name, self._key(index, name))
        )

    def _words(self) -> str:
        """What the results are of, for a file name."""
        request = self.request
        shots = [] if request.num_fewshot is None else [f"{request.num_fewshot}-shot"]
        items = "all-items" if request.limit is None else f"limit-{request.limit}"
        return "-".join([*shots, items] if self.tasks.tasks else ["perplexity"])

    def _protocols(self) -> dict[str, str]:
        texts = self.texts[0]
        return (
            {}
            if texts is None
            else {name: describe_protocol(texts, name) for name in texts.validation}
        )

    def _prompts(self) -> list[str]:
        tokenizers = [source.tokenizer for source in self.sources]
        return self.request.prompting.notes(tokenizers, self.tasks.tasks.values())

    def _results(self, measured: list[Measurements]) -> dict[str, Any]:
        request = self.request
        given = request.given()
        if request.endpoint is not None:
            given["endpoint"] = shown_address(request.endpoint)
        results: dict[str, Any] = {
            "evaluated": {
                "model": self.descriptions[0],
                "compared": self.descriptions[1] if len(self.sources) > 1 else None,
                "parts": {name: self.settings(0, name) for name in self._parts()},
            },
            "labels": self.labels,
            "request": given,
            "protocols": self._protocols(),
            "notes": notes(measured[0], self.tasks.groups, request.limit, self._prompts()),
            "results": {name: one.summary() for name, one in measured[0].items()},
            "groups": {name: list(members) for name, members in self.tasks.groups.items()},
            "recipe": self.sources[0].recipe,
            "versions": {
                "duquant": __version__,
                "python": platform.python_version(),
                **{package: version(package) for package in PACKAGES},
            },
        }
        if len(measured) > 1:
            results["compared_results"] = {n: one.summary() for n, one in measured[1].items()}
            results["differences"] = differences(*measured)
        return results
