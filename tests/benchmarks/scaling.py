"""What a block costs as it grows: seconds against hidden size and against calibration samples.

    python -m tests.benchmarks.scaling --plot scaling.png

Random LLaMA blocks (the MLP is 2.75 times as wide as the stream) on random inputs, one process. Two
phases are timed: *calibration* is everything but LWC, from the full-precision forward to the output
of the finished block; an *LWC epoch* passes over all samples once. The exponent printed with each
row is the slope of the line in the plot between this size and the one before.
"""

import argparse
import math
import time
import warnings
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from duquant.calibration import BlockCalibration
from duquant.config import Recipe
from duquant.data.batches import batch_loader
from duquant.data.streams import BlockSamples, Streams, StreamSizes
from duquant.model.structure import linear_shapes
from duquant.modules.block import QuantBlock, block_generator
from duquant.modules.block_optimizer import block_optimizer
from duquant.nn.attention_quantizer import ATTENTION_NAME
from tests.benchmarks.execution import plain_block

CPU = torch.device("cpu")
TOKENS = 128
HIDDEN_SIZES, SAMPLES = (512, 1024, 2048, 4096), (8, 16, 32, 64, 128)


def measure(hidden: int, samples: int) -> tuple[float, float]:
    """Seconds of calibration and of one LWC epoch."""
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_attention_heads=hidden // 64
    )
    config._attn_implementation = ATTENTION_NAME
    torch.manual_seed(0)
    layer, stream = plain_block(config, torch.float32), torch.randn(samples, TOKENS, hidden)
    positions = torch.arange(TOKENS).unsqueeze(0)
    context = {"position_embeddings": LlamaRotaryEmbedding(config)(stream, positions)}
    block, recipe = QuantBlock(linear_shapes(layer), Recipe()), Recipe()
    sizes = StreamSizes.of(recipe, samples, TOKENS, hidden, torch.float32)
    start = time.perf_counter()
    streams = Streams(stream, stream, stream.mean(dim=0, keepdim=True))
    draft = Streams.draft(sizes)
    calibration = BlockCalibration(block, streams, draft, context, CPU)
    calibration.enter(layer, block_generator(0, 0))
    entered = time.perf_counter()
    assert calibration.samples is not None
    _train(block, calibration.samples, recipe)
    trained = time.perf_counter()
    calibration.finish(None)
    return entered - start + time.perf_counter() - trained, trained - entered


def _train(block: QuantBlock, samples: BlockSamples, recipe: Recipe) -> None:
    """One epoch as the trainer takes it, without the trainer."""
    loader = batch_loader(samples, recipe.lwc.batch_size, CPU)
    optimizer = block_optimizer(block.parameter_groups())
    for index, batch in enumerate(loader):
        optimizer.zero_grad()
        loss = block.training_step(batch, index)
        assert loss is not None
        loss.backward()
        optimizer.step()


def table(name: str, sizes: tuple[int, ...], costs: list[tuple[float, float]]) -> None:
    """Print seconds, and how fast they grow."""
    print(
        f"\n| {name} | calibration, s | exponent | LWC epoch, s | exponent |\n|---|---|---|---|---|"
    )
    for index, (size, cost) in enumerate(zip(sizes, costs, strict=True)):
        slopes = ["", ""]
        if index:
            growth = math.log(size / sizes[index - 1])
            before = costs[index - 1]
            slopes = [f"{math.log(cost[k] / before[k]) / growth:.2f}" for k in (0, 1)]
        print(f"| {size} | {cost[0]:.2f} | {slopes[0]} | {cost[1]:.2f} | {slopes[1]} |", flush=True)


def draw(path: Path, results: dict[str, tuple[tuple[int, ...], list[tuple[float, float]]]]) -> None:
    """Both tables as log-log plots."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(results), sharey=True)
    for axis, (name, (sizes, costs)) in zip(axes, results.items(), strict=True):
        axis.loglog(sizes, [cost[0] for cost in costs], "o-", label="calibration")
        axis.loglog(sizes, [cost[1] for cost in costs], "s-", label="one LWC epoch")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel(name)
        axis.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel("seconds per block")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plot", type=Path, help="write a log-log plot here")
    parser.add_argument("--largest", type=int, default=HIDDEN_SIZES[-1], help="hidden size")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    sizes = tuple(size for size in HIDDEN_SIZES if size <= options.largest)
    by_size = [measure(size, 16) for size in sizes]
    table(f"hidden size, 16 samples of {TOKENS} tokens", sizes, by_size)
    by_samples = [measure(512, count) for count in SAMPLES]
    table(f"samples of {TOKENS} tokens, hidden size 512", SAMPLES, by_samples)
    if options.plot:
        draw(
            options.plot,
            {"hidden size": (sizes, by_size), "calibration samples": (SAMPLES, by_samples)},
        )


if __name__ == "__main__":
    main()
