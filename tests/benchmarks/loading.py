"""How long a packed model takes to load, against the same shapes in bfloat16.

    python -m tests.benchmarks.loading --blocks 8 [--cold]

Writes two random directories of LLaMA-2-7B's shapes, loads each in fresh processes in turn, and
prints medians: until ``from_pretrained`` returns, until every page of the weights has been read,
and until the first token is there, which for the integer backend includes laying out its weights.
For bfloat16 ``from_pretrained`` only maps files, so the second line is the one that compares
loading; ours has read every byte by then anyway, for its checksums. ``--cold`` drops the files from
the page cache before every load. Also prints the size of the quantized linears.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from duquant.atomic_files import write_json, write_tensors
from duquant.config import LWCConfig, Recipe, RotationConfig
from duquant.export.model_card import size_breakdown
from duquant.export.model_directory import ModelDirectory
from duquant.model.checkpoint import INDEX
from duquant.model.decoder import Decoder
from duquant.model.smoothing import Smoothed
from duquant.model.structure import LINEARS
from duquant.model.surgery import QuantizedBlock, insert_quantizers
from duquant.nn.clipping import FixedClip
from duquant.ops.dual_transform import DualTransform
from duquant.ops.permutation import zigzag_permutation
from duquant.transforms.rotate_permute import RotatePermute

LOAD = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import torch, duquant
from transformers import AutoModelForCausalLM
start = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
times = [time.perf_counter() - start]
for tensor in (*model.parameters(), *model.buffers()):
    int(tensor.detach().view(-1).view(torch.uint8)[::4096].sum())
times.append(time.perf_counter() - start)
with torch.inference_mode():
    model(torch.ones(1, 1, dtype=torch.int64))
print(json.dumps([*times, time.perf_counter() - start]))
"""
STAGES = ("from_pretrained", "until all is read", "until the first token")


def write_plain(directory: Path, config: LlamaConfig) -> None:
    """A random bfloat16 model, a file per block."""
    directory.mkdir()
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    files: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in skeleton.named_parameters():
        part = name.split(".")[2] if name.startswith("model.layers.") else "outside"
        files.setdefault(f"model-{part}.safetensors", {})[name] = parameter.shape
    weight_map = {}
    for file, shapes in files.items():
        tensors = {name: random_weight(shape) for name, shape in shapes.items()}
        write_tensors(directory / file, tensors)
        weight_map.update(dict.fromkeys(shapes, file))
    write_json(directory / INDEX, {"metadata": {}, "weight_map": weight_map})
    config.dtype = torch.bfloat16
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(directory)


def random_weight(shape: torch.Size) -> torch.Tensor:
    """Small random values."""
    return torch.randn(shape, dtype=torch.bfloat16).mul_(0.02)


def write_quantized(directory: Path, plain: Path) -> None:
    """The same model in W4A4, with random rotations."""
    recipe = Recipe(rotation=RotationConfig(selector="random"), lwc=LWCConfig(epochs=0))
    decoder = Decoder(str(plain), torch.bfloat16)
    target = ModelDirectory(directory, recipe)
    for index in range(decoder.num_blocks):
        target.write_block(index, quantize(decoder.load_block(index), recipe))
    target.complete(decoder)


def quantize(block: nn.Module, recipe: Recipe) -> QuantizedBlock:
    """Round a block to nearest behind random transforms."""
    clips = {name: FixedClip(1.0) for name in LINEARS}
    quantized = insert_quantizers(block, recipe, clips, Smoothed())
    size = recipe.rotation.block_size
    for site in quantized.sites.values():
        rotations = torch.linalg.qr(torch.randn(2, 1, size, size)).Q
        order = zigzag_permutation(torch.rand(site.width), size)
        matrices = DualTransform(rotations, order.unsqueeze(0))
        site.transform = RotatePermute(site.width, matrices)
    quantized.round_to_nearest()
    return quantized


def load_seconds(directory: Path, *, cold: bool) -> list[float]:
    """Seconds until loaded, until read and until the first token, in a fresh process."""
    for file in directory.iterdir() if cold else ():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # a page that is not written yet stays
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, "-c", LOAD, str(directory)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds: list[float] = json.loads(output.splitlines()[-1])
    return seconds


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    config = LlamaConfig(num_hidden_layers=options.blocks)
    with tempfile.TemporaryDirectory() as folder:
        plain, quantized = Path(folder) / "bfloat16", Path(folder) / "w4a4"
        write_plain(plain, config)
        write_quantized(quantized, plain)
        times: dict[str, list[list[float]]] = {"bfloat16": [], "w4a4": []}
        for _ in range(options.repeats):
            for path in (plain, quantized):
                times[path.name].append(load_seconds(path, cold=options.cold))
        for index, what in enumerate(STAGES):
            median = {name: statistics.median(t[index] for t in ts) for name, ts in times.items()}
            print(
                f"{what:24s} bfloat16 {median['bfloat16']:6.2f} s   W4A4 {median['w4a4']:6.2f} s   "
                f"{median['bfloat16'] / median['w4a4']:.2f} x"
            )
        sizes = size_breakdown(quantized)
    linears = 2 * options.blocks * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    for kind, size in sizes.items():
        print(f"{kind:44s} {size / 1e6:10.1f} MB   {size / linears:.4f} x bfloat16 linears")


if __name__ == "__main__":
    main()
