"""What LWC costs: one step beside a full-precision one, the whole training beside a naive loop.

    python -m tests.benchmarks.lwc --model ref-llama --block 1

Times are medians of steps that take turns, so that a busy machine slows all of them alike; ratios
are what counts. A step is forward, backward and optimizer. The *naive loop* is the algorithm as it
reads: every linear transforms and quantizes its own input and rotates and quantizes its weight
again for every sample, autograd differentiates the quantizer, and 20 epochs of single samples start
from sigmoid(4). ``LWC training`` counts what replaces it, the search of first factors included.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from duquant.config import LWCConfig, Recipe, RotationConfig
from duquant.data.datamodule import CalibrationDataModule
from duquant.model.batch import BlockBatch
from duquant.model.clip_initialization import search_clips
from duquant.model.decoder import Decoder
from duquant.model.smoothing import observe_peaks, smooth_block
from duquant.model.structure import ATTENTION, LINEARS, SITES, linear_shapes
from duquant.modules.block import QuantBlock
from duquant.modules.clip_optimizer import clip_optimizer
from duquant.nn.clipping import ClipFactors
from duquant.nn.site import SiteTransform
from duquant.ops.affine import fake_quantize
from duquant.ops.dual_transform import apply_transform
from tests.assets import ASSETS
from tests.benchmarks.accuracy import SUBJECTS

CPU = torch.device("cpu")
NAIVE_EPOCHS = 20


class NaiveLinear(nn.Module):
    """A linear that does all of its site's work alone.

    Args:
        linear: smoothed layer, not rotated.
        site: the site's transform and activation quantizer.
        clip: factors of its weight.
        bits: bits of the weight.
    """

    def __init__(self, linear: nn.Linear, site: SiteTransform, clip: nn.Module, bits: int) -> None:
        super().__init__()
        self.linear, self.site, self.clip, self.bits = linear, site, clip, bits

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        ratio = self.site.quantizer.clip_ratio
        rotated = apply_transform(self.site.smooth(x), self.site.transform)
        x = fake_quantize(rotated, self.site.quantizer.bits, clip_high=ratio, clip_low=ratio)
        high, low = self.clip()
        weight = apply_transform(self.linear.weight, self.site.transform)
        weight = fake_quantize(weight, self.bits, clip_high=high, clip_low=low)
        return F.linear(x, weight, self.linear.bias)


class Bench:
    """One block of a model in three shapes: full precision, LWC, naive."""

    def __init__(self, name: str, index: int) -> None:
        subject, directory = SUBJECTS[name], ASSETS / "assets" / "models" / name
        self.recipe = Recipe(rotation=RotationConfig(block_size=subject.block_size))
        decoder = Decoder(str(directory), torch.float32)
        self.context = decoder.contexts(subject.sequence_length, CPU)[index]
        windows = CalibrationDataModule(
            str(directory),
            calibration=str(ASSETS / "assets" / "text" / subject.calibration),
            num_samples=subject.num_samples,
            sequence_length=subject.sequence_length,
        ).calibration_windows()
        self.stream = decoder.embed(windows, CPU)
        self.full_precision = decoder.load_block(index)
        with torch.no_grad(), observe_peaks(self.full_precision) as peaks:
            self.target: Tensor = self.full_precision(self.stream, **self.context)
        self.block = QuantBlock(linear_shapes(decoder.meta_block()), self.recipe)
        statistic = self.stream.mean(dim=0, keepdim=True)
        self.block.enter(
            decoder.load_block(index),
            peaks,
            self.context,
            statistic,
            self.stream,
            torch.Generator().manual_seed(0),
        )
        self.naive = decoder.load_block(index)
        smooth_block(self.naive, peaks, self.recipe)
        self._make_naive()

    def _make_naive(self) -> None:
        assert self.block.quantized is not None
        self.naive_clips = nn.ModuleList()
        for site in SITES:
            for name in site.linears:
                linear = self.naive.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                clip = ClipFactors(linear.out_features)
                self.naive_clips.append(clip)
                transform = self.block.quantized.sites[site.name]
                naive = NaiveLinear(linear, transform, clip, self.recipe.weight_bits)
                self.naive.set_submodule(name, naive)
        attention = self.block.quantized.layer.get_submodule(ATTENTION)
        self.naive.get_submodule(ATTENTION).attention_quantizer = attention.attention_quantizer

    def batch(self, size: int) -> BlockBatch:
        """The first ``size`` samples."""
        return BlockBatch(self.stream[:size], self.target[:size], torch.zeros(0))

    def lwc_step(self, size: int) -> Callable[[], None]:
        """A training step as the trainer takes it, without the trainer."""
        optimizer, batch = clip_optimizer(self.block.parameters(), self.recipe), self.batch(size)

        def step() -> None:
            optimizer.zero_grad()
            self.block.training_step(batch, 0).backward()
            self.block.drop_unusable_gradients()
            optimizer.step()

        return step

    def naive_step(self) -> Callable[[], None]:
        """One sample through the naive block."""
        optimizer = clip_optimizer(self.naive_clips.parameters(), self.recipe)
        batch = self.batch(1)

        def step() -> None:
            optimizer.zero_grad()
            output = self.naive(batch.quantized_input, **self.context)
            F.mse_loss(output, batch.target).backward()
            optimizer.step()

        return step

    def full_precision_step(self, size: int) -> Callable[[], None]:
        """Forward and backward of the plain block, gradients for its input and its weights."""
        batch = self.batch(size)
        x = batch.quantized_input.clone().requires_grad_()
        weights = [self.full_precision.get_submodule(name).weight for name in LINEARS]

        def step() -> None:
            for weight in weights:
                assert isinstance(weight, nn.Parameter)
                weight.requires_grad_().grad = None
            loss = F.mse_loss(self.full_precision(x, **self.context), batch.target)
            loss.backward()

        return step

    def search(self) -> None:
        """What entering a block adds: its first clip factors."""
        assert self.block.quantized is not None
        search_clips(self.block.quantized, self.block, self.stream.split(16), self.recipe)


def median_seconds(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each step; they take turns, and the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=SUBJECTS, default="ref-llama")
    parser.add_argument("--block", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    bench, lwc = Bench(options.model, options.block), LWCConfig()
    size, samples = lwc.batch_size, len(bench.stream)
    seconds = median_seconds(
        {
            "full precision": bench.full_precision_step(size),
            "LWC": bench.lwc_step(size),
            "naive": bench.naive_step(),
            "search": bench.search,
        },
        options.rounds,
    )
    steps = lwc.epochs * -(-samples // size)
    ours = seconds["search"] + steps * seconds["LWC"]
    naive = NAIVE_EPOCHS * samples * seconds["naive"]
    step_ratio = seconds["LWC"] / seconds["full precision"]
    print(
        f"| {options.model}, block {options.block}, {samples} samples | ms | ratio |\n|---|---|---|"
    )
    print(f"| full-precision step, {size} samples | {1e3 * seconds['full precision']:.1f} | 1 |")
    print(f"| LWC step, {size} samples | {1e3 * seconds['LWC']:.1f} | {step_ratio:.2f} |")
    print(f"| naive step, 1 sample | {1e3 * seconds['naive']:.1f} | |")
    print(f"| search of first factors | {1e3 * seconds['search']:.0f} | |")
    print(f"| naive training, {NAIVE_EPOCHS} epochs | {1e3 * naive:.0f} | 1 |")
    print(f"| LWC training, {lwc.epochs} epochs | {1e3 * ours:.0f} | {ours / naive:.3f} |")
    print(f"| speed-up | | {naive / ours:.1f} |")


if __name__ == "__main__":
    main()
