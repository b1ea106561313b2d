"""One evaluation from its request to its results: check, measure part by part, compare, report."""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from duquant import __version__
from duquant.data.datamodule import CalibrationDataModule
from duquant.evaluation.harness import EvaluatedModel, measure_task
from duquant.evaluation.loaded_model import ModelSource, find_device
from duquant.evaluation.mmlu import MOST_SHOTS, FittingTask
from duquant.evaluation.parts import EvaluationDirectory
from duquant.evaluation.perplexity import describe_windows
from duquant.evaluation.perplexity_part import PERPLEXITY, corpus_digest, measure_perplexity
from duquant.evaluation.progress import EvaluationProgress
from duquant.evaluation.request import Request
from duquant.evaluation.results_table import print_results
from duquant.evaluation.statistics import Measurement, combine, difference
from duquant.evaluation.task_list import find_tasks

PACKAGES = ("torch", "transformers", "lm_eval", "datasets", "tokenizers")
LONGEST_WINDOW = 2048
VARIANTS = ("model", "compared")
Measurements = dict[str, Measurement]


class Evaluation:
    """Checks a request at once, and runs it afterwards.

    Args:
        request: what is asked for.
        console: where progress goes.

    Raises:
        ValueError: naming what is wrong; nothing has been written then.
    """

    def __init__(self, request: Request, console: Console) -> None:
        self.request = request
        self.console = console
        names = [request.model, *([request.compare] if request.compare else [])]
        find_device(request.device)
        self.sources = [ModelSource.find(name, request.tokenizer) for name in names]
        self.tasks = find_tasks(
            request.tasks,
            data_dir=request.data_dir,
            tasks_dir=request.tasks_dir,
            mmlu_data_dir=request.mmlu_data_dir,
        )
        self._require_examples()
        self.texts = [self._texts(source) for source in self.sources]
        self.directory = EvaluationDirectory(request.output_dir, self.description())

    def _require_examples(self) -> None:
        shots = self.request.num_fewshot or 0
        for name in self.tasks.data if shots else ():
            has_examples = isinstance(self.tasks.tasks[name], FittingTask)
            if not has_examples or shots > MOST_SHOTS:
                most = MOST_SHOTS if has_examples else 0
                raise ValueError(
                    f"num_fewshot is {shots}, but the local files of {name} have {most} examples"
                )

    def _texts(self, source: ModelSource) -> CalibrationDataModule | None:
        if not self.request.perplexity:
            return None
        length = self.request.sequence_length or min(LONGEST_WINDOW, source.max_length)
        if length > source.max_length:
            raise ValueError(
                f"sequence_length is {length}, but the model has {source.max_length} positions"
            )
        texts = CalibrationDataModule(
            self.request.tokenizer or source.name,
            validation=self.request.perplexity,
            sequence_length=length,
            validation_windows=self.request.perplexity_windows,
            stride=self.request.stride,
        )
        for name in texts.validation:
            texts.corpus_windows(name)
        return texts

    def description(self) -> dict[str, Any]:
        """What decides the numbers, without paths."""
        request, texts = self.request, self.texts[0]
        return {
            "model": self.sources[0].description(),
            "compared": self.sources[1].description() if len(self.sources) > 1 else None,
            "tasks": list(self.tasks.tasks),
            "data": self.tasks.data,
            "perplexity": {} if texts is None else corpus_digest(texts),
            "num_fewshot": request.num_fewshot,
            "limit": request.limit,
            "seed": request.seed,
            "dtype": request.dtype,
            "backend": request.backend,
            "lm_eval": version("lm_eval"),
        }

    def run(self, output: Console) -> None:
        """Measure what is not measured yet, write the results and print them."""
        progress = EvaluationProgress(self.console, self._expected_requests())
        try:
            measured = [
                self._measure(variant, source, texts, progress)
                for variant, source, texts in zip(VARIANTS, self.sources, self.texts, strict=False)
            ]
        except KeyboardInterrupt:
            progress.say(f"interrupted; the same command continues in {self.directory.path}")
            raise SystemExit(130) from None
        finally:
            progress.close()
        file = self.directory.write_results(self._results(measured))
        labels = [source.label for source in self.sources]
        title = f"Evaluation of {self.request.model}"
        print_results(title, labels, list(measured), self.tasks.groups, self.request.limit, output)
        if self.texts[0] is not None:
            output.print(_windows(self.texts[0]), soft_wrap=True, highlight=False)
        output.print(f"results: {file}", soft_wrap=True, highlight=False)

    def _measure(
        self,
        variant: str,
        source: ModelSource,
        texts: CalibrationDataModule | None,
        progress: EvaluationProgress,
    ) -> Measurements:
        """All parts of one model; it is loaded if one of them is missing."""
        names = self._parts()
        missing = [name for name in names if not self.directory.has(variant, name)]
        model: Any = None
        if missing:
            request = self.request
            model = source.load(request.dtype, request.device, request.backend)
            lm = EvaluatedModel(source, model, request.batch_size, progress.advance)
            self.directory.claim()
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
                )
            else:
                assert texts is not None
                part = measure_perplexity(model, texts, name, progress.advance)
            progress.finish(f"{source.label}, {name}", part)
            return part

        parts = {
            name: self.directory.part(variant, name, lambda name=name: measure(name))  # type: ignore[misc]
            for name in names
        }
        means = {
            group: combine(group, [parts[member] for member in members])
            for group, members in reversed(self.tasks.groups.items())
        }
        return {**parts, **means}

    def _parts(self) -> list[str]:
        return [*self.tasks.tasks, *(PERPLEXITY + name for name in self.request.perplexity)]

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
            for variant, _ in zip(VARIANTS, self.sources, strict=False)
            for name in self._parts()
            if not self.directory.has(variant, name)
        )

    def _results(self, measured: list[Measurements]) -> dict[str, Any]:
        request = {k: v for k, v in asdict(self.request).items() if v not in (None, {}, [])}
        results: dict[str, Any] = {
            **self.description(),
            "request": {k: str(v) if isinstance(v, Path) else v for k, v in request.items()},
            "results": {name: one.summary() for name, one in measured[0].items()},
            "groups": {name: list(members) for name, members in self.tasks.groups.items()},
            "recipe": self.sources[0].recipe,
            "versions": {
                "duquant": __version__,
                "python": platform.python_version(),
                **{package: version(package) for package in PACKAGES},
            },
        }
        if self.texts[0] is not None:
            results["protocol"] = _windows(self.texts[0])
        if len(measured) > 1:
            results["compared_results"] = {n: one.summary() for n, one in measured[1].items()}
            results["differences"] = differences(*measured)
        return results


def differences(
    model: Mapping[str, Measurement], reference: Mapping[str, Measurement]
) -> dict[str, Any]:
    """By task and metric, how the model differs from the reference."""
    return {
        name: {
            metric: asdict(difference(value, reference[name].metrics[metric]))
            for metric, value in own.metrics.items()
        }
        for name, own in model.items()
    }


def _windows(texts: CalibrationDataModule) -> str:
    titles = ", ".join(f"{name}: {texts.protocol(name).title}" for name in texts.validation)
    cut = f", at most the first {texts.validation_windows}" if texts.validation_windows else ""
    return f"{titles}; {describe_windows(texts.sequence_length, texts.stride)}{cut}"
