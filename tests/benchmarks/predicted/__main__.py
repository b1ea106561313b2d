"""Seconds on an H100 and an H200, computed from counts and shapes; nothing is run.

    python -m tests.benchmarks.predicted

LLaMA-2-7B's shapes, 128 windows of 2,048 tokens, bfloat16. Kernels and waits are those of
:mod:`tests.ceilings`, which tests hold; operations and bytes follow from shapes; what a card does
in a second is its data sheet's, times a share that is assumed. Every row is computed with
optimistic and with pessimistic assumptions (:mod:`tests.benchmarks.predicted.card`).

Left out: the model's embedding of the calibration text, its perplexity, inverses of learned blocks,
activation clips that are searched, pictures, and what the host computes beside asking for kernels.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from duquant.model.decoder import Decoder
from duquant.preflight.job import Job
from tests.benchmarks.expected import job_of, read_recipe, write_empty_checkpoint
from tests.benchmarks.predicted.card import (
    H100,
    H200,
    OPTIMISTIC,
    OURS,
    PESSIMISTIC,
    Assumptions,
    Card,
    Seconds,
    Work,
    seconds,
)
from tests.benchmarks.predicted.parts import (
    Parts,
    calibration,
    decoding,
    prefill,
    with_streams_on_host,
)
from tests.benchmarks.predicted.shapes import Block, training_step

LLAMA_2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
    "architectures": ["LlamaForCausalLM"],
}
BOTH = (OPTIMISTIC, PESSIMISTIC)
HEADER = "launches | waits | both take | products | traffic | mostly | H100 | H200 | target"


class Row(NamedTuple):
    """A line of the table."""

    name: str
    parts: Parts
    target: str = ""


def total(parts: Parts, card: Card, given: Assumptions) -> float:
    """Seconds of parts that follow each other, while files are written behind."""
    each = [seconds(work, card, given) for work in parts.values()]
    behind = sum(one.files for one in each)
    return max(behind, sum(replace(one, files=0.0).total for one in each))


def bound(parts: Parts, card: Card, given: Assumptions) -> str:
    """The part that takes the longest, and what of it does."""
    each = {name: seconds(work, card, given) for name, work in parts.items()}
    if sum(one.files for one in each.values()) >= total(parts, card, given):
        return "files"
    name = max(each, key=lambda part: replace(each[part], files=0.0).total)
    return f"{name} ({each[name].bound})" if len(parts) > 1 else each[name].bound


def span(values: list[float]) -> str:
    """Seconds from the smallest to the largest, in a unit that suits."""
    low, high = min(values), max(values)
    if not high:
        return "0"
    units = (("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    unit, size = next(each for each in units if high >= 1.5 * each[1] or each[0] == "µs")
    digits = [f"{x:.0f}" if x >= 100 else f"{x:.3g}" for x in (low / size, high / size)]
    return f"{' to '.join(digits)} {unit}"


def line(row: Row) -> str:
    """Counts, times by what takes them on an H100, and the sums."""
    work = sum(row.parts.values(), Work())
    of_all: list[Seconds] = [seconds(work, H100, given) for given in BOTH]
    bounds = list(dict.fromkeys(bound(row.parts, H100, given) for given in BOTH))
    cells = [
        f"{work.launches + work.replayed:,.0f}",
        f"{work.waits:,.0f}",
        span([each.launches + each.waits for each in of_all]),
        span([each.products for each in of_all]),
        span([each.traffic for each in of_all]),
        "; ".join(bounds),
        *(span([total(row.parts, card, given) for given in BOTH]) for card in (H100, H200)),
        row.target,
    ]
    return f"| {row.name} | " + " | ".join(cells) + " |"


def ratio(original: Work, quantized: Work, card: Card) -> tuple[float, float]:
    """Lowest and highest of how many times as fast, over assumptions that both share and ours."""
    found = []
    for shared in BOTH:
        theirs = seconds(original, card, shared).total
        for own in BOTH:
            given = replace(shared, **{name: getattr(own, name) for name in OURS})
            found.append(theirs / seconds(quantized, card, given).total)
    return min(found), max(found)


def compared(name: str, original: Work, quantized: Work, target: str) -> list[str]:
    """Two lines of the table, and one of their ratio."""
    rows = [Row(f"{name}, bfloat16", {"": original}), Row(f"{name}, W4A4", {"": quantized})]
    ratios = [
        "{:.2f} to {:.2f} ×".format(*ratio(original, quantized, card)) for card in (H100, H200)
    ]
    empty = " | ".join([""] * 6)
    return [
        *map(line, rows),
        f"| {name}, times as fast | {empty} | {' | '.join(ratios)} | {target} |",
    ]


def calibrations(jobs: dict[str, Job]) -> list[Row]:
    """The recipes."""
    targets = {"w4a4": "60 s", "lwc_fast": "4 min", "w4a4_lwc": "15 min", "w4a4_best": ""}
    rows = [
        Row(f"calibration, `{name}.yaml`", calibration(jobs[name]), target)
        for name, target in targets.items()
    ]
    for pinned in (False, True):
        kind = "page-locked" if pinned else "ordinary"
        parts = with_streams_on_host(jobs["lwc_fast"], pinned=pinned)
        rows.append(Row(f"`lwc_fast.yaml`, streams in the host's {kind} memory", parts))
    return rows


def recipe_jobs(folder: Path) -> dict[str, Job]:
    """Of LLaMA-2-7B, by the name of a recipe."""
    decoder = Decoder(str(write_empty_checkpoint(folder, LLAMA_2_7B)), torch.bfloat16)
    files = {
        "w4a4": ["w4a4"],
        "lwc_fast": ["w4a4_lwc", "lwc_fast"],
        "w4a4_lwc": ["w4a4_lwc"],
        "w4a4_best": ["w4a4_best"],
    }
    return {
        name: job_of(decoder, read_recipe(*each), in_memory=True) for name, each in files.items()
    }


def table(jobs: dict[str, Job]) -> list[str]:
    """All lines."""
    job = jobs["w4a4"]
    block = Block.of(job)
    lines = [f"| LLaMA-2-7B | {HEADER} |", "|---" * 10 + "|"]
    lines += map(line, calibrations(jobs))
    prefills = (prefill(block, quantized=each) for each in (False, True))
    lines += compared(f"prefill of a block, {block.length:,} tokens", *prefills, "1.2 ×")
    for how, name in (("eager", "eager"), ("compiled", "compiled"), ("graph", "CUDA graph")):
        tokens = (decoding(job, quantized=each, how=how) for each in (False, True))
        lines += compared(f"decoding one token, {name}", *tokens, "1.0 ×")
    lines += ["", "| a step of LWC, H100 | optimistic | pessimistic |", "|---|---|---|"]
    step = training_step(block, jobs["lwc_fast"].batch_size * block.length, learns_all=False)
    for name, work in step.items():
        taken = [seconds(work, H100, given).total for given in BOTH]
        lines.append(f"| {name} | {taken[0] * 1e3:.1f} ms | {taken[1] * 1e3:.1f} ms |")
    return lines


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(table(recipe_jobs(Path(folder)))))


if __name__ == "__main__":
    main()
