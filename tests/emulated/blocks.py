"""Scenarios that count what a block's turn asks of the emulated device where nothing learns.

Operators with a kernel in Triton count as what that launches.
"""

from pathlib import Path
from typing import Any

import torch

from callbacks.defaults import default_callbacks, default_logger
from callbacks.run_directory import prepare_fit
from duquant.config import RoundingConfig
from duquant.data import stream_pass
from duquant.formats.integer import Integer
from duquant.model.structure import SITES
from duquant.rounding.gptq import GPTQ
from tests.ceilings import KERNELS_OF_A_SEARCH_STEP
from tests.emulated import device
from tests.emulated.counts import counting
from tests.emulated.scenarios import DEVICE, Facts, scenario, sources
from tests.in_process import (
    NO_LWC,
    ROTATION,
    small_data,
    small_language_model,
    small_trainer,
)

TOKENS = 32
"""Of a window; one passes a block at a time."""
SEARCHES = len(SITES) * (ROTATION.permutation_times + 1)
"""Of a block."""


@scenario
def blocks(folder: Path) -> Facts:
    """Of a fit with all that a command has: one more block, and one more chunk of it."""
    stream_pass.TOKENS_AT_ONCE = TOKENS
    return {
        name: _by_differences(folder / name, rounding=RoundingConfig(name))
        for name in ("nearest", "gptq")
    }


def _by_differences(folder: Path, **recipe: Any) -> Facts:
    asked = {
        (count, chunks): _asked(folder / f"{count}_{chunks}", count, chunks, **recipe)
        for count in (1, 2)
        for chunks in (8, 16)
    }
    facts: Facts = {}
    for what in ("kernels", "waits"):
        few, many = (asked[2, chunks][what] - asked[1, chunks][what] for chunks in (8, 16))
        of_a_chunk = (many - few) / 8
        facts[f"{what} of a chunk"] = of_a_chunk
        facts[f"{what} of a block"] = few - 8 * of_a_chunk
    of_a_step = KERNELS_OF_A_SEARCH_STEP[ROTATION.selector]
    facts["kernels of a block"] -= SEARCHES * ROTATION.max_steps * of_a_step
    return facts


def _asked(folder: Path, count: int, chunks: int, **recipe: Any) -> Facts:
    """Totals of a fit of so many blocks."""
    (source, text), output = sources(folder, blocks=count), folder / "run"
    model = small_language_model(source, output, lwc=NO_LWC, **recipe)
    data = small_data(source, text, num_samples=chunks, sequence_length=TOKENS)
    prepare_fit(model, data, None)
    fit = small_trainer(
        *default_callbacks(output), logger=default_logger(output), accelerator=device.NAME
    )
    with counting() as counts, device.triton_kernels():
        fit.fit(model, datamodule=data)
    return counts.totals()


@scenario
def columns(folder: Path) -> Facts:
    """What GPTQ asks for a column of a weight, from weights of 64 and of 128."""
    kernels = []
    for count in (64, 128):
        generator = torch.Generator("cpu").manual_seed(0)
        x = torch.randn(2 * count, count, generator=generator)
        weight = torch.randn(16, count, generator=generator)
        with counting() as counts:
            GPTQ()(weight.to(DEVICE), Integer(4), gram=(x.T @ x).to(DEVICE))
        kernels.append(counts.totals()["kernels"])
    return {"kernels of a column": (kernels[1] - kernels[0]) / 64}
