"""Two gloo processes that calibrate together, as functions of a test, not as commands.

:func:`run_pair` starts them; what each found out comes back as plain values.
"""

import os
import socket
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from callbacks.block_events import BlockObserver, BlockRecord
from callbacks.checkpointing import LastCheckpoint
from callbacks.data_parallel import BlockParallel, processes_of
from callbacks.defaults import default_callbacks
from duquant.config import LWCConfig
from duquant.model.site_report import SiteReport
from duquant.modules.language_model import LanguageModel
from duquant.processes import Processes
from tests.in_process import (
    LEARNS_ALL,
    NO_LWC,
    calibrate,
    small_data,
    small_language_model,
    small_trainer,
)

SPOILED = 3
"""Number of the sample that a test spoils; of two processes, process 1 holds it."""
EXACT_ACTIVATIONS: dict[str, Any] = {
    "weight_bits": 3,
    "activation_bits": 16,
    "lwc": LWCConfig(epochs=3, learning_rate=0.1, batch_size=4),
}
"""No activation is rounded, so a last bit stays a last bit."""


class SpoilSample(BlockObserver):
    """Puts NaN into one sample of block 1, in whichever process holds it."""

    def on_block_entered(
        self, trainer: Trainer, model: LanguageModel, index: int, reports: dict[str, SiteReport]
    ) -> None:
        samples, processes = trainer.datamodule.samples, processes_of(trainer)  # type: ignore[attr-defined]
        if index == 1 and SPOILED % processes.count == processes.rank:
            samples.quantized_input = samples.quantized_input.clone()
            samples.quantized_input[SPOILED // processes.count, 5, 7] = float("nan")


def calibrate_with_nan(source: Path, text: Path, output: Path, **options: Any) -> LanguageModel:
    """A calibration whose block 1 sees a sample that is not a number."""
    model = small_language_model(source, output, **EXACT_ACTIVATIONS)
    data = small_data(source, text, batch_size=4)
    calibrate(model, data, LastCheckpoint(output), SpoilSample(), **options)
    return model


def calibrate_learning_all(source: Path, text: Path, output: Path, **options: Any) -> LanguageModel:
    """A calibration that trains transforms and clip factors of activations too."""
    model = small_language_model(source, output, **LEARNS_ALL)
    calibrate(model, small_data(source, text), LastCheckpoint(output), **options)
    return model


def calibrate_without_lwc(source: Path, text: Path, output: Path, **options: Any) -> None:
    """A calibration to W2A2 in which nothing trains, and every block loses too much."""
    model = small_language_model(source, output, lwc=NO_LWC, weight_bits=2, activation_bits=2)
    calibrate(model, small_data(source, text), LastCheckpoint(output), **options)


def perplexities(
    source: Path, text: Path, output: Path, windows: int, **options: Any
) -> dict[str, float]:
    """What a validation of a finished run finds."""
    data = small_data(source, text, validation_windows=windows, validation_chunk=2)
    model = small_language_model(source, output, **EXACT_ACTIVATIONS)
    progression = default_callbacks(output, with_progress=False, with_checkpoints=False)[0]
    small_trainer(progression, **options).validate(model, data, verbose=False)
    return model.perplexities["topics"]


def run_pair(source: Path, text: Path, output: Path) -> list[dict[str, Any]]:
    """Run :func:`work` in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.process_pair"])  # one import for both
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        futures = [pool.submit(work, rank, port, source, text, output) for rank in range(2)]
        return [future.result(timeout=300) for future in futures]


def work(rank: int, port: int, source: Path, text: Path, output: Path) -> dict[str, Any]:
    """What one of the two does and finds out."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        NODE_RANK="0",
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
    )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    together: dict[str, Any] = {"strategy": BlockParallel(), "devices": 2}
    model = calibrate_with_nan(source, text, output, **together)
    found = exchange(Processes(rank, 2))
    found["skipped_steps"] = [int(block.skipped_steps) for block in model.blocks]  # type: ignore[arg-type]
    found["factors"] = [parameter.detach() for parameter in model.parameters()]
    found["losses"] = [record.lwc_losses for record in BlockRecord.load_all(output, 2)]
    together["strategy"] = BlockParallel()
    learned = calibrate_learning_all(source, text, output / "learned", **together)
    found["learned"] = [parameter.detach() for parameter in learned.parameters()]
    together["strategy"] = BlockParallel()
    calibrate_without_lwc(source, text, output / "without_lwc", **together)
    for windows in (1, 3):
        together["strategy"] = BlockParallel()
        found[f"perplexity {windows}"] = perplexities(source, text, output, windows, **together)
    return found


def exchange(processes: Processes) -> dict[str, Any]:
    """Every reduction over values that differ between processes, and a disagreement."""
    rank = processes.rank
    value = torch.tensor([1.0 + rank, -rank, float("nan") if rank else 0.0])
    found: dict[str, Any] = {
        "sum": processes.sum(value),
        "mean": processes.mean(value),
        "max": processes.max(value),
        "untouched": value,
    }
    same: list[Tensor | str] = [torch.arange(5), "text"]
    processes.require_same(same, "nothing differs")
    try:
        processes.require_same([*same, torch.tensor(float(rank))], "look for the reason")
    except ValueError as error:
        found["complaint"] = str(error)
    return found
