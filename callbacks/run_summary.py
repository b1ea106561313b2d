"""What a run comes to: a table on the terminal and ``summary.json`` in the run directory."""

import math
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from callbacks.block_events import BlockRecord
from callbacks.preflight_file import compare_with_estimate
from callbacks.run_checks import peak_memory_bytes
from callbacks.run_words import (
    describe_distillation,
    describe_recipe,
    distillation_in_words,
)
from duquant import __version__
from duquant.atomic_files import write_json
from duquant.data.datamodule import CalibrationDataModule
from duquant.evaluation.perplexity import describe_windows
from duquant.export.model_card import write_model_card
from duquant.json_files import read_json
from duquant.modules.language_model import LanguageModel
from duquant.modules.variants import (
    FULL_PRECISION,
    QUANTIZED,
    ROUND_TO_NEAREST,
    describe_baseline,
)
from duquant.reporting.measurements import UNMEASURED
from duquant.reporting.report import HTML, MARKDOWN, write_report
from duquant.reporting.run_contents import read_run
from duquant.reporting.run_files import Summary, read_summary
from duquant.run_description import RunDescription
from duquant.terminal import say
from duquant.terminal_table import PlainTable, show_table

PACKAGES = ("torch", "lightning", "transformers", "datasets", "torchmetrics", "safetensors")


class RunSummary(Callback):
    """Writes and prints the results after every validation, and of a fit that is not measured."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.results: dict[str, Any] = {}
        self._started = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; find out now, not after the work, whether a record is damaged."""
        self._started = time.perf_counter()
        if isinstance(pl_module, LanguageModel) and trainer.is_global_zero:
            BlockRecord.load_all(pl_module.output_dir, pl_module.num_turns)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the results, then write them."""
        self._conclude(trainer, pl_module, time.perf_counter() - self._started)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where no validation follows, the run ends here."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        is_last = isinstance(pl_module, LanguageModel) and pl_module.is_calibrated
        if is_last and not data.validation:
            self._conclude(trainer, pl_module, None)

    def _conclude(
        self, trainer: Trainer, pl_module: LightningModule, seconds: float | None
    ) -> None:
        """Print and write what came out; ``seconds`` is what measuring it took, if it was.

        ``summary.json`` says that the run is finished. The model card comes before it; the report,
        which is made from it, is completed by :func:`show_finished` if the run ends in between.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(pl_module, LanguageModel) or not trainer.is_global_zero:
            return
        assert isinstance(data, CalibrationDataModule)
        output_dir = pl_module.output_dir
        self.results = summary = summarize(pl_module, data, trainer.strategy.root_device)
        print_summary(summary, self.console)  # what is written next may fail
        path = output_dir / "summary.json"
        is_later = path.is_file()  # the fit's own measurement stays
        is_first = not is_later or not read_summary(path)["perplexity"]
        if not is_later:
            summary["preflight"] = compare_with_estimate(
                output_dir,
                memory=summary["peak_memory_bytes"],
                calibration=summary["seconds"]["total"],
                validation=seconds,
            )
        if is_first:
            write_model_card(
                pl_module.directory.path, pl_module.decoder.pretrained, pl_module.recipe, summary
            )
        write_json(path.with_name("validation.json") if is_later else path, summary)
        page, _ = write_report(output_dir, [read_run(output_dir)])
        say(f"report: {page}", self.console)


def show_finished(
    model: LanguageModel, data: CalibrationDataModule, console: Console | None = None
) -> Summary:
    """Show and return the results of a finished run; write the report if it ended before that."""
    output_dir, console = model.output_dir, console or Console()
    say(f"{output_dir} is already finished; there is nothing left to do", console)
    print_stored_summary(output_dir, data, console)
    if not all((output_dir / name).is_file() for name in (HTML, MARKDOWN)):
        page, _ = write_report(output_dir, [read_run(output_dir)])
        say(f"report: {page}", console)
    return read_summary(output_dir / "summary.json")


def results_of(trainer: Trainer) -> dict[str, Any]:
    """What a trainer's run has come to; nothing where another process tells it."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next(each.results for each in callbacks if isinstance(each, RunSummary))


def summarize(
    model: LanguageModel, data: CalibrationDataModule, device: torch.device
) -> dict[str, Any]:
    """Everything a reader needs to quote or repeat a run."""
    calibration = read_json(model.output_dir / "run.json", RunDescription)["data"]
    records = BlockRecord.load_all(model.output_dir, model.num_turns)
    blocks = [record for record in records if record.index < model.num_blocks]
    whole = [record for record in records if record.index >= model.num_blocks]
    return {
        "pretrained": model.decoder.pretrained,
        "perplexity": model.perplexities,
        "known_before": sorted(model.known_full_precision),
        **describe_measurement(data),
        "calibration": calibration,
        "recipe": model.recipe.to_dict(),
        "recipe_in_words": describe_recipe(model),
        "baseline": describe_baseline(model.recipe) if model.report_round_to_nearest else "",
        "seed": calibration["seed"],
        "dtype": str(model.decoder.dtype).removeprefix("torch."),
        "versions": {
            "duquant": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "device": _device_name(device),
        "seconds": {
            "total": sum(record.seconds for record in records),
            "per_block": [record.seconds for record in blocks],
        },
        "peak_memory_bytes": max(
            [peak_memory_bytes(device), *(record.peak_memory_bytes for record in records)]
        ),
        "blocks": [record.to_dict() for record in blocks],
        "distillation": [describe_distillation(record) for record in whole],
        "artifact": str(model.directory.path),
    }


def describe_measurement(data: CalibrationDataModule) -> dict[str, Any]:
    """What perplexities are of: the texts, and how they are cut into windows."""
    protocol = describe_windows(data.sequence_length, data.stride)
    if not data.validation:
        protocol = UNMEASURED
    elif data.validation_windows is not None:
        protocol += f", at most the first {data.validation_windows}"
    return {
        "protocol": protocol,
        "protocols": {name: data.protocol(name).title for name in data.validation},
        "corpora": data.validation,
    }


def print_stored_summary(
    output_dir: Path, data: CalibrationDataModule, console: Console | None = None
) -> None:
    """Show the results of a finished run again, and whether they are of the texts in ``data``.

    Nothing is shown if it was never measured.
    """
    path = output_dir / "summary.json"
    if not path.is_file():
        return
    summary, console = read_summary(path), console or Console()
    print_summary(summary, console)
    if any(summary.get(key) != value for key, value in describe_measurement(data).items()):
        say(
            f"These are not the texts or windows asked for now: the run is finished, and python "
            f"cli.py validate -c {output_dir / 'config.yaml'} --data.validation … measures others.",
            console,
        )


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Show perplexities and cost."""
    rows = {
        FULL_PRECISION: f"full precision ({summary['dtype']})",
        ROUND_TO_NEAREST: f"round to nearest ({summary['recipe_in_words'].partition(' ')[0]})",
        QUANTIZED: summary["recipe_in_words"],
    }
    table = PlainTable()
    table.add_column("")
    for corpus in summary["perplexity"]:
        table.add_column(corpus, justify="right")
    for variant, label in rows.items():
        values = [values.get(variant) for values in summary["perplexity"].values()]
        if any(value is not None for value in values):
            table.add_row(label, *("–" if value is None else f"{value:.3f}" for value in values))
    if summary["perplexity"]:
        say(f"Perplexity of {summary['pretrained']}", console, "italic")
        show_table(table, console)
    skipped = sum(block["skipped_steps"] for block in summary["blocks"])
    for corpus, title in summary.get("protocols", {}).items():
        say(f"{corpus}: {title}", console)
    say(
        f"{summary['protocol']}; calibrated in {summary['seconds']['total']:.0f} s, peak memory "
        f"{summary['peak_memory_bytes'] / 1e9:.1f} GB"
        + (f", {skipped} LWC steps skipped (not finite)" if skipped else ""),
        console,
    )
    if summary.get("baseline"):
        say(summary["baseline"], console)
    for whole in summary.get("distillation", []):
        say(distillation_in_words(whole), console)
    _print_complaints(summary["blocks"], console)
    say(f"quantized model: {summary['artifact']}", console)


def _print_complaints(blocks: list[dict[str, Any]], console: Console) -> None:
    lossy = [block for block in blocks if block.get("complaint")]
    if lossy:
        worst = max(lossy, key=lambda b: math.inf if (e := b["relative_error"]) is None else e)
        say(
            f"{len(lossy)} of {len(blocks)} blocks lose too much; the worst, block "
            f"{worst['index'] + 1}: {worst['complaint']}",
            console,
        )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
