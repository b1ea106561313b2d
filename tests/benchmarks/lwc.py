"""What LWC costs: one step beside a full-precision one, the whole training beside a naive loop.

    python -m tests.benchmarks.lwc --model ref-llama --block 1
    python -m tests.benchmarks.lwc --model llama-2-7b --rounds 3    # its shapes, random

Times are medians of steps that take turns, so that a busy machine slows all of them alike; ratios
are what counts. A step is forward, backward and optimizer. The *naive loop* is the algorithm as it
reads: every linear transforms and quantizes its own input and rotates and quantizes its weight
again for every sample in plain PyTorch, autograd differentiates the quantizer, and 20 epochs of
single samples start from sigmoid(4). A whole training is its number of steps times a step's median;
what happens once per block is left out on both sides. ``--profile`` says where the time goes.
"""

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from duquant.config import Recipe, RotationConfig
from duquant.data.datamodule import CalibrationDataModule
from duquant.model.batch import BlockBatch
from duquant.model.channel_ranges import observe_sites
from duquant.model.decoder import BlockContext, Decoder
from duquant.model.smoothing import smooth_block
from duquant.model.structure import ATTENTION, LINEARS, SITES, linear_shapes
from duquant.modules.block import QuantBlock
from duquant.modules.block_optimizer import block_optimizer
from duquant.nn.attention_quantizer import ATTENTION_NAME
from duquant.nn.clipping import ClipFactors
from duquant.nn.site import SiteTransform
from duquant.ops.affine import fake_quantize
from duquant.ops.dual_transform import apply_in_steps
from tests.assets import ASSETS
from tests.benchmarks.accuracy import FAST_TRAINING, SUBJECTS
from tests.benchmarks.execution import plain_block

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
        ratio, form = self.site.quantizer.clip.high, self.site.quantizer.form
        rotated = apply_in_steps(self.site.smooth(x), self.site.transform.matrices)
        x = fake_quantize(rotated, form.bits, clip_high=ratio, clip_low=ratio)
        high, low, _ = self.clip()
        weight = apply_in_steps(self.linear.weight, self.site.transform.matrices)
        weight = fake_quantize(weight, self.bits, clip_high=high, clip_low=low)
        return F.linear(x, weight, self.linear.bias)


@dataclass(frozen=True)
class Subject:
    """A block, and what it is trained on.

    Attributes:
        load: makes the full-precision block anew.
        context: what its forward needs beside hidden states.
        stream: calibration inputs ``(samples, tokens, hidden)``.
        block_size: channels of a rotation block.
    """

    load: Callable[[], nn.Module]
    context: BlockContext
    stream: Tensor
    block_size: int


def block_of_a_model(name: str, index: int) -> Subject:
    """Block ``index`` of a model among the assets, on the embeddings of its calibration text."""
    settings, directory = SUBJECTS[name], ASSETS / "assets" / "models" / name
    decoder = Decoder(str(directory), torch.float32)
    windows = CalibrationDataModule(
        str(directory),
        calibration=str(ASSETS / "assets" / "text" / settings.calibration),
        num_samples=settings.num_samples,
        sequence_length=settings.sequence_length,
    ).calibration_windows()
    context = decoder.contexts(settings.sequence_length, CPU)[index]
    stream = decoder.embed(windows, CPU)
    return Subject(lambda: decoder.load_block(index), context, stream, settings.block_size)


def random_block(samples: int, tokens: int) -> Subject:
    """A block of LLaMA-2-7B's shapes with random weights, on random inputs."""
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_attention_heads=32)
    config._attn_implementation = ATTENTION_NAME
    stream = torch.randn(samples, tokens, config.hidden_size)
    rotary = LlamaRotaryEmbedding(config)
    context = {"position_embeddings": rotary(stream, torch.arange(tokens).unsqueeze(0))}
    plain = plain_block(config, torch.float32)
    return Subject(lambda: copy.deepcopy(plain), context, stream, 128)


class Bench:
    """One block in three shapes: full precision, LWC, naive."""

    def __init__(self, subject: Subject) -> None:
        rotation = RotationConfig(block_size=subject.block_size, max_steps=32)
        self.recipe = Recipe(rotation=rotation)
        self.context, self.stream = subject.context, subject.stream
        self.full_precision = subject.load()
        with torch.no_grad(), observe_sites(self.full_precision) as ranges:
            self.target: Tensor = self.full_precision(self.stream, **self.context)
        self.block = QuantBlock(linear_shapes(self.full_precision), self.recipe)
        calibration_mean = self.stream.mean(dim=0, keepdim=True)
        self.block.enter(
            subject.load(),
            ranges,
            self.context,
            calibration_mean,
            lambda: [self.stream],
            torch.Generator().manual_seed(0),
        )
        self.naive = subject.load()
        smooth_block(self.naive, ranges, self.recipe)
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
        optimizer, batch = block_optimizer(self.block.parameter_groups()), self.batch(size)

        def step() -> None:
            optimizer.zero_grad()
            self.block.training_step(batch, 0).backward()
            self.block.drop_unusable_step(optimizer)
            optimizer.step()

        return step

    def naive_step(self) -> Callable[[], None]:
        """One sample through the naive block."""
        optimizer = block_optimizer(
            [{"params": list(self.naive_clips.parameters()), "lr": self.recipe.lwc.learning_rate}]
        )
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


def print_profile(step: Callable[[], None], steps: int = 10) -> None:
    """Shares of a step's time by PyTorch operator, without what it calls; the largest ten."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(steps):
            step()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print("\n| operator | share |\n|---|---|")
    for event in events[:10]:
        print(f"| {event.key} | {event.self_cpu_time_total / total:.1%} |")


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=[*SUBJECTS, "llama-2-7b"], default="ref-llama")
    parser.add_argument("--block", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512, help="of a sample, for llama-2-7b")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=FAST_TRAINING.epochs)
    parser.add_argument("--batch_size", type=int, default=FAST_TRAINING.batch_size)
    parser.add_argument("--profile", action="store_true", help="also of an LWC step")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    lwc = replace(FAST_TRAINING, epochs=options.epochs, batch_size=options.batch_size)
    if options.model in SUBJECTS:
        bench = Bench(block_of_a_model(options.model, options.block))
    else:
        bench = Bench(random_block(lwc.batch_size, options.tokens))
    size, samples = lwc.batch_size, len(bench.stream)
    seconds = median_seconds(
        {
            "full precision": bench.full_precision_step(size),
            "LWC": bench.lwc_step(size),
            "naive": bench.naive_step(),
        },
        options.rounds,
    )
    steps = lwc.epochs * -(-samples // size)
    ours = steps * seconds["LWC"]
    naive = NAIVE_EPOCHS * samples * seconds["naive"]
    step_ratio = seconds["LWC"] / seconds["full precision"]
    tokens = bench.stream.shape[1]
    print(f"| {options.model}, {samples} samples of {tokens} tokens | ms | ratio |\n|---|---|---|")
    print(f"| full-precision step, {size} samples | {1e3 * seconds['full precision']:.1f} | 1 |")
    print(f"| LWC step, {size} samples | {1e3 * seconds['LWC']:.1f} | {step_ratio:.2f} |")
    print(f"| naive step, 1 sample | {1e3 * seconds['naive']:.1f} | |")
    print(f"| naive training, {NAIVE_EPOCHS} epochs | {1e3 * naive:.0f} | 1 |")
    print(f"| LWC training, {lwc.epochs} epochs | {1e3 * ours:.0f} | {ours / naive:.3f} |")
    print(f"| speed-up | | {naive / ours:.1f} |")
    if options.profile:
        print_profile(bench.lwc_step(size))


if __name__ == "__main__":
    main()
