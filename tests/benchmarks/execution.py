"""What a quantized block costs against the same block in bfloat16 (and float32), on this machine.

    python -m tests.benchmarks.execution --tokens 2048
    python -m tests.benchmarks.execution --hidden 1024 --intermediate 2816 --tokens 256   # a taste

LLaMA-2-7B's shapes, random weights, one process, everything in one run: prefill of one sequence and
decoding of one token behind it. With ``--compiled`` both sides run eagerly and compiled; the faster
counts. Both sides take turns, numbers are medians, and ratios are times of the baseline over times
of the quantized block. The roofline is the integer matrix product alone over the baseline's.
Integers are multiplied by the kernels that were measured to be fastest here. Then the seven linears
run by each candidate alone, in turns with ``auto``, and a line says how near it is to the fastest.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from duquant.config import LWCConfig, Recipe, RotationConfig
from duquant.export.packed_block import pack_block, unpack_block
from duquant.model.execution import configure_execution, describe_kernels
from duquant.model.structure import LINEARS, SITES
from duquant.nn.attention_quantizer import ATTENTION_NAME
from duquant.nn.execution import Execution
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.site import SiteNorm, SiteTransform
from tests.benchmarks.candidates import candidates
from tests.benchmarks.loading import quantize

Run = Callable[[], object]


def seconds(*runs: Run, repeats: int) -> list[float]:
    """Median of each run after one to warm up; they take turns, so that all meet the same noise."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for run, measured in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if turn:
                measured.append(time.perf_counter() - start)
    return [statistics.median(measured) for measured in times]


def plain_block(config: LlamaConfig, dtype: torch.dtype) -> nn.Module:
    """A block of random weights."""
    block = LlamaDecoderLayer(config, 0)
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02)
    return block.to(dtype).eval().requires_grad_(False)


def quantized_block(config: LlamaConfig, dtype: torch.dtype) -> nn.Module:
    """The same kind of block, W4A4 with random rotations and permutations."""
    recipe = Recipe(rotation=RotationConfig(selector="random"), lwc=LWCConfig(epochs=0))
    tensors = pack_block(quantize(plain_block(config, torch.float32), recipe))
    with torch.device("meta"):
        fresh = LlamaDecoderLayer(config, 0)
    return unpack_block(fresh, tensors, recipe, dtype).eval().requires_grad_(False)


class Bench:
    """Inputs of one block and the runs whose clock is taken."""

    def __init__(self, config: LlamaConfig, tokens: int, dtype: torch.dtype) -> None:
        self.hidden = torch.randn(1, tokens, config.hidden_size, dtype=dtype)
        rotary = LlamaRotaryEmbedding(config)
        self.position = rotary(self.hidden, torch.arange(tokens).unsqueeze(0))
        widths = (config.hidden_size, config.intermediate_size)
        self.inputs = {width: torch.randn(tokens, width, dtype=dtype) for width in widths}

    def block(self, block: nn.Module, tokens: int | None = None) -> Run:
        """One forward pass over the first ``tokens`` tokens."""
        hidden, (cos, sin) = self.hidden[:, :tokens], self.position
        position = (cos[:, :tokens], sin[:, :tokens])
        return lambda: block(hidden, position_embeddings=position)

    def linears(self, block: nn.Module, tokens: int | None = None) -> Run:
        """The seven linears with their transforms, without attention and norms."""

        def run() -> None:
            for site in SITES:
                first = block.get_submodule(site.linears[0])
                x = self.inputs[first.in_features][:tokens]
                norm = block.get_submodule(site.producer)
                x = norm.site(x) if isinstance(norm, SiteNorm) else x
                for name in site.linears:
                    block.get_submodule(name)(x)

        return run

    def plain_products(self, block: nn.Module) -> Run:
        """The seven matrix products of a block that is not quantized."""
        linears = [block.get_submodule(name) for name in LINEARS]
        return lambda: [linear(self.inputs[linear.in_features]) for linear in linears]

    def integer_products(self, block: nn.Module) -> Run:
        """The integer products of the seven linears, nothing else."""
        linears = [block.get_submodule(name) for name in LINEARS]
        q = {
            width: torch.randint(0, 16, x.shape, dtype=torch.uint8)
            for width, x in self.inputs.items()
        }
        weights = [(linear.in_features, linear.prepare()[0].weight) for linear in linears]
        return lambda: [weight.product(q[width]) for width, weight in weights]

    def parts(self, block: nn.Module) -> dict[str, Run]:
        """Transforms, and the quantization of what they return."""
        sites = [module for module in block.modules() if isinstance(module, SiteTransform)]
        wide = {width: x.float() for width, x in self.inputs.items()}
        return {
            "transform": lambda: [site.transformed(wide[site.width]) for site in sites],
            "quantization": lambda: [site.quantizer.encoded(wide[site.width]) for site in sites],
        }


def compare_candidates(block: nn.Module, bench: Bench, tokens: int, repeats: int) -> None:
    """Print what the seven linears take by each, and how ``auto`` stands to the fastest."""
    blocks = candidates(block)
    runs = [bench.linears(each, tokens) for each in blocks.values()]
    times = dict(zip(blocks, seconds(*runs, repeats=repeats), strict=True))
    for name, taken in times.items():
        print(f"{f'{tokens} tokens, linears alone, by {name}':44s} {'':13s} {taken * 1e3:10.2f} ms")
    auto = times.pop("auto")
    ratio = min(times.values()) / auto
    print(f"{tokens} tokens, auto against the fastest candidate: {ratio:.2f} x", flush=True)


def resident_bytes(block: nn.Module) -> int:
    """Bytes of the linears as they lie in memory."""
    linears = [module for module in block.modules() if isinstance(module, PackedLinear)]
    return sum(linear.resident_bytes() for linear in linears)


def row(name: str, baseline: list[Run], ours: list[Run], repeats: int) -> None:
    """Print one line of the table; of several forms of a run the fastest counts."""
    times = seconds(*baseline, *ours, repeats=repeats)
    slow, fast = min(times[: len(baseline)]), min(times[len(baseline) :])
    print(
        f"{name:44s} {slow * 1e3:10.1f} ms {fast * 1e3:10.1f} ms {slow / fast:7.2f} x", flush=True
    )


@torch.inference_mode()
def compare(ours: nn.Module, bench: Bench, plain: nn.Module, wide: Bench, options: Any) -> None:
    """The table's rows of one baseline, which runs in the dtype of ``wide``."""
    name = str(wide.hidden.dtype).removeprefix("torch.")

    def forms(block: nn.Module, inputs: Bench, tokens: int | None) -> list[Run]:
        blocks = [block, torch.compile(block, dynamic=False)] if options.compiled else [block]
        return [inputs.block(each, tokens) for each in blocks]

    for what, tokens, more in (
        *((f"prefill {options.tokens}", None, 1), ("decode 1", 1, 20)),
        ("8", 8, 20),  # as many as decoding 8 sequences multiplies
    ):
        row(
            f"{what} tokens, block, against {name}",
            forms(plain, wide, tokens),
            forms(ours, bench, tokens),
            more * options.repeats,
        )
    row(
        f"prefill, linears alone, against {name}",
        [wide.linears(plain)],
        [bench.linears(ours)],
        options.repeats,
    )
    row(
        f"roofline: matrix products alone, against {name}",
        [wide.plain_products(plain)],
        [bench.integer_products(ours)],
        options.repeats,
    )


@torch.inference_mode()
def measure(options: Any) -> None:
    """Print the table."""
    sizes = {
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate,
        "num_attention_heads": options.heads,
        "max_position_embeddings": options.tokens,
    }
    config = LlamaConfig(**sizes, attn_implementation="sdpa")
    ours_config = LlamaConfig(**sizes, attn_implementation=ATTENTION_NAME)
    bench = Bench(config, options.tokens, torch.bfloat16)
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{'':44s} {'baseline':>13s} {'W4A4':>13s}   ratio")
    ours = quantized_block(ours_config, torch.bfloat16)
    configure_execution([ours], Execution("integer"))
    print(describe_kernels([ours]))
    plain = plain_block(config, torch.bfloat16)
    compare(ours, bench, plain, bench, options)
    wide = Bench(config, options.tokens, torch.float32)
    compare(ours, bench, plain_block(config, torch.float32), wide, options)
    parts = bench.parts(ours)
    for name, cost in zip(parts, seconds(*parts.values(), repeats=options.repeats), strict=True):
        print(f"{'prefill, of which ' + name:44s} {'':13s} {cost * 1e3:10.1f} ms")
    linears = [ours.get_submodule(name) for name in LINEARS]
    bf16 = sum(2 * linear.in_features * linear.out_features for linear in linears)
    print(f"weights in memory, fast:   {resident_bytes(ours) / bf16:.3f} x bfloat16")
    for tokens, more in ((1, 20), (16, 20), (128, 4), (options.tokens, 1)):
        compare_candidates(ours, bench, tokens, more * options.repeats)
    configure_execution([ours], Execution("integer", "packed"))
    print(f"weights in memory, packed: {resident_bytes(ours) / bf16:.3f} x bfloat16")
    row(
        "prefill, packed, against bfloat16",
        [bench.block(plain)],
        [bench.block(ours)],
        options.repeats,
    )


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="also try torch.compile")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    measure(options)


if __name__ == "__main__":
    main()
