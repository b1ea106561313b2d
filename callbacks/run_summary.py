"""What a run comes to: a table on the terminal and ``summary.json`` in the run directory."""

import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from callbacks.block_events import BlockRecord
from callbacks.block_progression import peak_memory_bytes
from callbacks.preflight import compare_with_estimate
from duquant import __version__
from duquant.data.datamodule import CalibrationDataModule
from duquant.durable import write_json
from duquant.evaluation.perplexity import describe_windows
from duquant.export.model_card import write_model_card
from duquant.json_files import read_json
from duquant.modules.language_model import (
    FULL_PRECISION,
    QUANTIZED,
    ROUND_TO_NEAREST,
    LanguageModel,
)
from duquant.modules.run_description import RunDescription
from duquant.reporting.measurements import UNMEASURED
from duquant.reporting.report import write_report
from duquant.reporting.run_contents import read_run
from duquant.reporting.run_files import read_summary

PACKAGES = ("torch", "lightning", "transformers", "datasets", "torchmetrics", "safetensors")


class RunSummary(Callback):
    """Writes and prints the results after every validation, and of a fit that is not measured."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._started = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``summary.json`` and print the table."""
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
        """Write and print what came out; ``seconds`` is what measuring it took, if it was."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(pl_module, LanguageModel) or not trainer.is_global_zero:
            return
        assert isinstance(data, CalibrationDataModule)
        summary = summarize(pl_module, data, trainer.strategy.root_device)
        path = pl_module.output_dir / "summary.json"
        is_later = path.is_file()  # the fit's own measurement stays
        is_first = not is_later or not read_summary(path)["perplexity"]
        if not is_later:
            summary["preflight"] = compare_with_estimate(
                pl_module.output_dir,
                memory=peak_memory_bytes(trainer.strategy.root_device),
                calibration=summary["seconds"]["total"],
                validation=seconds,
            )
        write_json(path.with_name("validation.json") if is_later else path, summary)
        if is_first:
            write_model_card(
                pl_module.directory.path, pl_module.decoder.pretrained, pl_module.recipe, summary
            )
        print_summary(summary, self.console)
        page, _ = write_report(pl_module.output_dir, [read_run(pl_module.output_dir)])
        self.console.print(f"report: {page}", soft_wrap=True)


def summarize(
    model: LanguageModel, data: CalibrationDataModule, device: torch.device
) -> dict[str, Any]:
    """Everything a reader needs to quote or repeat a run."""
    calibration = read_json(model.output_dir / "run.json", RunDescription)["data"]
    records = BlockRecord.load_all(model.output_dir, model.num_blocks)
    return {
        "pretrained": model.decoder.pretrained,
        "perplexity": model.perplexities,
        **describe_measurement(data),
        "calibration": calibration,
        "recipe": model.recipe.to_dict(),
        "recipe_in_words": describe_recipe(model),
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
            "per_block": [record.seconds for record in records],
        },
        "peak_memory_bytes": max((record.peak_memory_bytes for record in records), default=0),
        "blocks": [record.to_dict() for record in records],
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
        console.print(
            f"These are not the texts or windows asked for now: the run is finished, and python "
            f"cli.py validate -c {output_dir / 'config.yaml'} --data.validation … measures others.",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )


def describe_recipe(model: LanguageModel) -> str:
    """``W4A4 DuQuant+LWC`` and the like."""
    recipe = model.recipe
    name = "DuQuant" if recipe.rotation.selector != "none" else "no rotation"
    return (
        f"W{recipe.weight_bits}A{recipe.activation_bits} {name}{'+LWC' if recipe.has_lwc else ''}"
    )


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Show perplexities and cost."""
    rows = {
        FULL_PRECISION: f"full precision ({summary['dtype']})",
        ROUND_TO_NEAREST: f"round to nearest ({summary['recipe_in_words'].partition(' ')[0]})",
        QUANTIZED: summary["recipe_in_words"],
    }
    table = Table()
    table.add_column("")
    for corpus in summary["perplexity"]:
        table.add_column(corpus, justify="right")
    for variant, label in rows.items():
        values = [values.get(variant) for values in summary["perplexity"].values()]
        if any(value is not None for value in values):
            table.add_row(label, *("–" if value is None else f"{value:.3f}" for value in values))
    if summary["perplexity"]:
        title = f"Perplexity of {summary['pretrained']}"
        console.print(title, soft_wrap=True, style="italic", highlight=False, markup=False)
        console.print(table)
    skipped = sum(block["skipped_steps"] for block in summary["blocks"])
    for corpus, title in summary.get("protocols", {}).items():
        console.print(f"{corpus}: {title}", soft_wrap=True, highlight=False)
    console.print(
        f"{summary['protocol']}; calibrated in {summary['seconds']['total']:.0f} s, peak memory "
        f"{summary['peak_memory_bytes'] / 1e9:.1f} GB"
        + (f", {skipped} LWC steps skipped (not finite)" if skipped else ""),
        soft_wrap=True,
    )
    console.print(f"quantized model: {summary['artifact']}", soft_wrap=True)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
