"""What a block of LLaMA-2-7B's shape costs on the device: calibration, its steps, and running."""

import functools
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from callbacks.outlier_picture import draw_outliers
from duquant.atomic_files import write_tensors
from duquant.calibration import BlockCalibration
from duquant.config import LWCConfig, Recipe, RotationConfig
from duquant.data.stream_files import StreamFiles
from duquant.data.streams import Streams, StreamSizes
from duquant.export.packed_block import pack_block, unpack_block
from duquant.model.batch import BlockBatch
from duquant.model.block_forward import run_block
from duquant.model.execution import configure_execution, transform_of
from duquant.model.structure import SITES, linear_shapes
from duquant.modules.block import QuantBlock, block_generator
from duquant.nn.attention import register_attention
from duquant.nn.attention_quantizer import ATTENTION_NAME
from duquant.nn.execution import Execution
from duquant.ops.rotation import find_rotation
from tests.benchmarks.gpu.bench import Bench, Figures, check, generator
from tests.benchmarks.loading import quantize


@dataclass(frozen=True)
class World:
    """A block's configuration, and hidden states ``(samples, tokens, hidden)`` on the CPU."""

    config: LlamaConfig
    hidden: Tensor
    context: dict[str, Any]
    device: torch.device

    def layer(self, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
        """A block of random weights, with outlier channels."""
        torch.manual_seed(0)
        with torch.device(self.device):
            block = LlamaDecoderLayer(self.config, 0)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.normal_(std=0.02) if parameter.dim() > 1 else parameter.fill_(1)
            block.input_layernorm.weight[::97] = 8
        return block.to(dtype).eval().requires_grad_(False)

    def enter(self, epochs: int, steps: int) -> BlockCalibration:
        """A calibration that is ready to train, or to be finished."""
        recipe = Recipe(
            rotation=RotationConfig(max_steps=steps), lwc=LWCConfig(epochs=epochs, batch_size=2)
        )
        layer, shape = self.layer(), self.hidden.shape
        sizes = StreamSizes.of(recipe, *shape, self.hidden.dtype)
        quantized = self.hidden if sizes.has_quantized else self.hidden[:0]
        mean = self.hidden.double().mean(0, keepdim=True).to(self.hidden.dtype)
        streams, draft = Streams(self.hidden, quantized, mean), Streams.draft(sizes)
        block = QuantBlock(linear_shapes(layer), recipe)
        calibration = BlockCalibration(block, streams, draft, self.context, self.device)
        calibration.enter(layer, block_generator(2, 0))
        return calibration


@functools.cache
def world(bench: Bench) -> World:
    """The same for all checks of a process."""
    register_attention()
    hidden, width, heads, tokens = (128, 256, 2, 32) if bench.small else (4096, 11008, 32, 2048)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=width, num_attention_heads=heads,
        num_key_value_heads=heads, num_hidden_layers=1, vocab_size=128,
        max_position_embeddings=4096, attn_implementation=ATTENTION_NAME,
    )  # fmt: skip
    states = torch.randn(4 if bench.small else 8, tokens, hidden, generator=generator(0))
    rotary = LlamaRotaryEmbedding(config)
    positions = rotary(states[:1], torch.arange(tokens).view(1, -1))
    moved = tuple(each.to(bench.device, torch.bfloat16) for each in positions)
    context = {"position_embeddings": moved, "attention_mask": None}
    return World(config, states.bfloat16(), context, bench.device)


def steps(bench: Bench) -> int:
    """Greedy steps of a rotation search."""
    return 4 if bench.small else 256


@check(60)
def full_precision_step(bench: Bench) -> Figures:
    """What everything else is measured against."""
    here, host = world(bench), world(bench).hidden[:2]
    block, x = here.layer(), host.to(bench.device)
    weights = [parameter for parameter in block.parameters() if parameter.dim() > 1]

    def step() -> None:
        for weight in weights:
            weight.requires_grad_(True).grad = None
        block(x, **here.context).float().square().mean().backward()

    backward = bench.median_ms(step)
    block.requires_grad_(False)
    return {
        "forward_ms": bench.median_ms(lambda: block(x, **here.context)),
        "forward_and_backward_ms": backward,
        "from_host_to_host_ms": bench.median_ms(
            lambda: run_block(block, host, here.context, bench.device)
        ),
        "two_samples_to_device_ms": bench.median_ms(lambda: host.to(bench.device)),
    }


@check(90)
def rotation_search(bench: Bench) -> Figures:
    """Seconds of a search, with outliers and without."""
    figures: Figures = {}
    config, tokens = world(bench).config, world(bench).hidden.shape[1]
    widths = (config.hidden_size, config.intermediate_size)
    for width, scope, has_outliers in product(widths, ("shared", "per_block"), (True, False)):
        x = torch.randn(tokens, width, generator=generator(0)) * 0.05
        if has_outliers:
            x[:, :: width // 6] *= 40
        x = x.to(bench.device)

        def search(count: int, x: Tensor = x, scope: Any = scope) -> None:
            options = {"block_size": 128, "max_steps": count, "selector": "outlier"}
            find_rotation(x, **options, scope=scope, generator=generator(2))  # type: ignore[arg-type]

        search(2)
        name = f"{width} {scope} {'outliers' if has_outliers else 'plain'}, s"
        figures[name] = round(bench.seconds(lambda: search(steps(bench))), 4)
    return {**figures, "profile": bench.profile(lambda: search(16), 8)}


@check(120)
def duquant_without_lwc(bench: Bench) -> Figures:
    """A block from entering to its files."""
    here, figures, done = world(bench), {}, []
    here.enter(0, 2)
    entered = bench.seconds(lambda: done.append(here.enter(0, steps(bench))))
    calibration = done[0]
    figures["enter_s"] = round(entered, 3)
    figures["picture_s"] = bench.seconds(lambda: draw_outliers(calibration.reports, "block"))
    packed: dict[str, Tensor] = {}
    figures |= bench.peak_gb(lambda: calibration.finish(lambda b: packed.update(pack_block(b))))
    folder = Path(bench.folder / "block")
    folder.mkdir(exist_ok=True)
    file = folder / "block.safetensors"
    figures["write_s"] = bench.seconds(lambda: write_tensors(file, packed))
    sizes = StreamSizes(*here.hidden.shape, here.hidden.dtype, True)
    streams = Streams(here.hidden, here.hidden.clone(), here.hidden[:1])
    files = StreamFiles(folder, sizes, device=here.hidden.device)
    figures["write_streams_s"] = bench.seconds(lambda: files.save(1, streams))
    return {"ok": bool(packed), **figures}


@check(120)
def lwc_step(bench: Bench) -> Figures:
    """One step of training and its parts."""
    calibration = world(bench).enter(1, steps(bench))
    block, samples = calibration.block.train(), calibration.samples
    assert samples is not None
    assert block.quantized is not None
    optimizer, pair = block.configure_optimizers(), samples.batch([0, 1])
    batch = BlockBatch(*(each.to(bench.device) for each in pair))

    def step(*, guarded: bool = True) -> None:
        block.training_step(batch, 0).backward()
        if guarded:
            block.drop_unusable_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()

    linear = block.quantized.linears["mlp.down_proj"]
    direction = torch.randn_like(linear.weight)
    figures = {
        "step_ms": bench.median_ms(step),
        "forward_ms": bench.median_ms(lambda: block.training_step(batch, 0)),
        "unguarded_step_ms": bench.median_ms(lambda: step(guarded=False)),
        "fake_quantization_ms": bench.median_ms(
            lambda: linear.quantized_weight().backward(direction)
        ),
        "profile": bench.profile(step, 16),
        **bench.peak_gb(step),
    }
    return {"ok": int(block.skipped_steps) == 0, **figures}


def random_block(bench: Bench) -> nn.Module:
    """A finished W4A4 block with random transforms."""
    here = world(bench)
    recipe = Recipe(rotation=RotationConfig(selector="random"), lwc=LWCConfig(epochs=0))
    tensors = pack_block(quantize(here.layer(torch.float32).cpu(), recipe))
    with torch.device("meta"):
        fresh = LlamaDecoderLayer(here.config, 0)
    block = unpack_block(fresh, tensors, recipe, torch.bfloat16).eval()
    return block.requires_grad_(False).to(bench.device)


@check(90)
@torch.no_grad()
def packed_against_bf16(bench: Bench) -> Figures:
    """Each linear that is first of its site, with and without the transform before it."""
    figures: Figures = {}
    block = random_block(bench)
    configure_execution([block], Execution())
    for site, tokens in product(SITES, (1, 16) if bench.small else (1, 16, 64, 512, 2048, 32768)):
        linear, transform = block.get_submodule(site.linears[0]), transform_of(block, site)
        rows, columns = linear.out_features, linear.in_features
        weight = torch.randn(rows, columns, device=bench.device, dtype=torch.bfloat16)
        x = torch.randn(tokens, columns, device=bench.device, dtype=torch.bfloat16)
        own, linear.site = linear.site, None  # the transform is timed on its own
        given = transform(x)
        row = {
            "bf16_ms": bench.mean_ms(lambda: F.linear(x, weight)),  # noqa: B023
            "packed_ms": bench.mean_ms(lambda: linear(given)),  # noqa: B023
            "site_ms": bench.mean_ms(lambda: transform(x)),  # noqa: B023
        }
        linear.site = own
        row["ratio"] = round(row["bf16_ms"] / row["packed_ms"], 3)
        figures[f"{site.name}, {tokens} tokens"] = row
    return figures


@check(90)
@torch.no_grad()
def whole_block(bench: Bench) -> Figures:
    """Prefill and decoding against the block in bfloat16."""
    here, figures = world(bench), {}
    plain, block = here.layer(), random_block(bench)
    cos, sin = here.context["position_embeddings"]
    for backend, tokens in product(("auto", "reference"), (here.hidden.shape[1], 1)):
        configure_execution([block], Execution(backend))  # type: ignore[arg-type]
        x, positions = here.hidden[:1, :tokens].to(bench.device), (cos[:, :tokens], sin[:, :tokens])
        runs = [
            functools.partial(each, x, position_embeddings=positions) for each in (plain, block)
        ]
        slow, fast = (bench.mean_ms(run, 10 if tokens > 1 else 30) for run in runs)
        row = {"bf16_ms": slow, "w4a4_ms": fast, "ratio": round(slow / fast, 3)}
        if tokens == 1:
            row["profile"] = bench.profile(runs[1], 6)
        figures[f"{backend}, {tokens} tokens"] = row
    return figures
