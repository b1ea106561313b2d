"""What calibrating LLaMA-3-8B would take, computed without its weights.

    python -m tests.benchmarks.expected
    python -m tests.benchmarks.expected w4a4_gptq --seconds

Memory and disk follow from shapes, so an empty file of the checkpoint's size is enough (16 GB long,
a few pages on a file system that has sparse files). ``--seconds`` also times a thin block, as
``fit`` does when it begins, in CPU seconds of one thread, in float32: the time of one idle core.
Nothing is calibrated. To compare with what runs took, see :mod:`tests.benchmarks.preflight`.
"""

import argparse
import json
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig

from callbacks.preflight import picture_seconds
from duquant.config import Recipe
from duquant.data.streams import StreamSizes
from duquant.model.checkpoint import WEIGHTS
from duquant.model.decoder import Decoder
from duquant.modules.block import QuantBlock
from duquant.preflight.disk import disk_bytes
from duquant.preflight.duration import estimate_duration
from duquant.preflight.job import Job
from duquant.preflight.memory import distilled_bytes, largest_phase
from tests.assets import REPOSITORY

RECIPES = ("w4a4", "w4a4_gptq", "w4a4_lwc", "w4a4_best")
SAMPLES, TOKENS = 128, 2048
WINDOWS = 141
"""Of 2,048 tokens in the test text of WikiText-2, about."""
CHUNK = 64
LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "dtype": "bfloat16",
    "architectures": ["LlamaForCausalLM"],
}


def write_empty_checkpoint(directory: Path, sizes: dict[str, Any]) -> Path:
    """A configuration of ``sizes``, and a file that names every weight and holds none."""
    config = LlamaConfig(**sizes)
    config.save_pretrained(directory)
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).state_dict()
    header, end = {}, 0
    for name, weight in weights.items():
        start, end = end, end + 2 * weight.numel()
        shape = list(weight.shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return directory


def read_recipe(*names: str) -> Recipe:
    """The recipe of a file in ``configs/``, or of several, each put behind those before it."""
    recipe: dict[str, Any] = {}
    for name in names:
        text = (REPOSITORY / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
        for option, value in yaml.safe_load(text)["model"].items():
            before = recipe.get(option)
            recipe[option] = {**before, **value} if isinstance(before, dict) else value
    return Recipe.from_dict(recipe)


def job_of(decoder: Decoder, recipe: Recipe, *, in_memory: bool) -> Job:
    """The published calibration: 128 windows of 2,048 tokens."""
    sizes = StreamSizes.of(recipe, SAMPLES, TOKENS, decoder.hidden_size, decoder.dtype)
    return Job(decoder, recipe, sizes, in_memory, recipe.lwc.batch_size, (WINDOWS,), CHUNK)


def row(decoder: Decoder, name: str, resident: int) -> str:
    """Memory and disk of a recipe, in GB, as a line of a table."""
    recipe, cells = read_recipe(name), []
    jobs = [job_of(decoder, recipe, in_memory=in_memory) for in_memory in (True, False)]
    for job in jobs:
        phase = largest_phase(job)
        cells.append(f"{(resident + phase.num_bytes) / 1e9:.1f} ({phase.name})")
    block = QuantBlock(jobs[0].linears, recipe)
    learned = decoder.num_blocks * sum(parameter.nbytes for parameter in block.parameters())
    learned += distilled_bytes(jobs[0])
    disk = " / ".join(f"{disk_bytes(job, learned) / 1e9:.1f}" for job in jobs)
    streams = f"{jobs[0].streams.bytes_at_once / 1e9:.1f}"
    return f"| {name} | {streams} | {cells[0]} | {cells[1]} | {disk} |"


def hours(decoder: Decoder, name: str) -> str:
    """CPU time of one thread: calibration of all blocks, and the perplexity."""
    torch.set_num_threads(1)
    time.perf_counter = time.process_time  # other work on the machine does not count
    job = job_of(decoder, read_recipe(name), in_memory=True)
    spent = estimate_duration(
        job,
        torch.device("cpu"),
        blocks_left=decoder.num_blocks,
        picture_seconds=picture_seconds(job),
    )
    return (
        f"{name}: {spent.per_block:.0f} s a block, {spent.calibration / 3600:.0f} h for all, "
        f"{spent.validation / 3600:.0f} h for the perplexity"
    )


def main() -> None:
    """Print a row for every recipe, and hours if they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=", ".join(RECIPES))
    parser.add_argument("--seconds", action="store_true", help="also time a thin block")
    options = parser.parse_args()
    names = options.recipes or RECIPES
    resident = int(psutil.Process().memory_info().rss)
    with tempfile.TemporaryDirectory() as folder:
        directory = str(write_empty_checkpoint(Path(folder), LLAMA_3_8B))
        decoder = Decoder(directory, torch.bfloat16)
        print("| recipe | streams | streams in memory | streams on disk | disk |")
        print("|---|---|---|---|---|")
        for name in names:
            print(row(decoder, name, resident), flush=True)
        if options.seconds:
            decoder = Decoder(directory, torch.float32)
            for name in names:
                print(hours(decoder, name), flush=True)


if __name__ == "__main__":
    main()
