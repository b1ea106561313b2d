"""Scenarios of whole runs on the emulated device, as a command makes them."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

import cli
from duquant.data.streams import Streams
from tests.emulated import device
from tests.emulated.scenarios import Facts, scenario, sources
from tests.small_run import arguments, stored_tensors


@scenario
def a_run(folder: Path) -> Facts:
    """``fit`` on the command line: once at a stretch, and once stopped within a block.

    The second begins with its streams in the device's memory, and ends with them on disk.
    """
    source, _ = sources(folder)
    options = ["--trainer.accelerator", device.NAME, "--model.lwc.epochs", "2"]
    options += ["--model.distillation.epochs", "1"]
    begin = ["fit", *arguments(source, folder / "whole", *options)]
    stopped = ["fit", *arguments(source, folder / "parts", *options)]
    places: list[str] = []
    draft = Streams.draft.__func__  # type: ignore[attr-defined]

    def noted(kind: type[Streams], *arguments: Any, **options: Any) -> Streams:
        made: Streams = draft(kind, *arguments, **options)
        places.append(made.full_precision.device.type)
        return made

    Streams.draft = classmethod(noted)  # type: ignore[assignment, method-assign]
    statuses, drafts = [], []
    for command in (
        begin,
        [*stopped, "--trainer.max_steps", "6"],
        [*stopped, "--data.stream_memory_gb", "0"],
    ):
        places.clear()
        statuses.append(_command(*command))
        drafts.append(sorted(set(places)))
    whole, parts = stored_tensors(folder / "whole"), stored_tensors(folder / "parts")
    summary = json.loads((folder / "whole" / "summary.json").read_text(encoding="utf-8"))
    return {
        "statuses": statuses,
        "streams": drafts,
        "equal": whole.keys() == parts.keys()
        and all(torch.equal(whole[name], parts[name]) for name in whole),
        "perplexities": sorted(summary["perplexity"]["topics"]),
        "blocks": len(summary["blocks"]),
    }


def _command(*options: str) -> int:
    sys.argv = ["cli.py", *options]
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
