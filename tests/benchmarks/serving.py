"""Speed of a quantized model in vLLM, beside its original there and beside both in transformers.

    python -m tests.benchmarks.serving QUANTIZED ORIGINAL [--dtype bfloat16] [--profile]

Every contender has a process with one thread. They take turns, and what counts is the processor
time of the process that computes, so other work on the machine hardly changes it; on an idle
machine it is the time that passes. Medians of the rounds.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

PREFILL = ((1, 512), (8, 512))
"""Sequences and tokens of each."""
DECODE = (1, 8, 32)
"""Sequences; each gets so many new tokens:"""
NEW_TOKENS = 32
PROFILED = 14
"""Rows of the profile."""
Generate = Callable[[list[list[int]], int], object]


class Contender(NamedTuple):
    """A model in an engine."""

    engine: str
    directory: Path
    dtype: str


class Batch(NamedTuple):
    """Prompts of one length, and how many tokens are asked for."""

    sequences: int
    prompt: int
    new_tokens: int
    seed: int

    def ids(self) -> list[list[int]]:
        """Prompts that differ from their first token on."""
        return [
            [(self.seed * 131 + row * 17 + place * 7) % 1000 + 3 for place in range(self.prompt)]
            for row in range(self.sequences)
        ]


def vllm_generate(contender: Contender, stack: ExitStack) -> Generate:
    """Greedy generation by vLLM, in this process."""
    from vllm import SamplingParams

    from tests.serving.served import served

    options = {
        "dtype": contender.dtype,
        "max_model_len": 1024,
        "max_num_seqs": max(DECODE),
        "max_num_batched_tokens": 4096,
        "block_size": 128,
        "kv_cache_memory_bytes": 1 << 30,
        "enable_prefix_caching": False,
    }
    engine = stack.enter_context(served(contender.directory, backend="auto", **options))

    def generate(prompts: list[list[int]], new_tokens: int) -> object:
        wanted = SamplingParams(
            temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        return engine.generate(inputs, wanted, use_tqdm=False)

    return generate


def transformers_generate(contender: Contender, stack: ExitStack) -> Generate:
    """Greedy generation by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    import duquant  # noqa: F401

    stack.enter_context(torch.no_grad())
    model = AutoModelForCausalLM.from_pretrained(contender.directory, dtype=contender.dtype)

    def generate(prompts: list[list[int]], new_tokens: int) -> object:
        ids = torch.tensor(prompts, device="cpu")
        options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    return generate


ENGINES = {"vllm": vllm_generate, "transformers": transformers_generate}


def work(contender: Contender, pipe: Connection) -> None:
    """Answer batches with seconds, in a process of its own; ``None`` ends it."""
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    import torch

    torch.set_num_threads(1)
    with ExitStack() as stack:
        generate = ENGINES[contender.engine](contender, stack)
        generate(Batch(2, 64, 4, 0).ids(), 4)
        pipe.send("ready")
        while (asked := pipe.recv()) is not None:
            batch, is_profiled = asked
            pipe.send(profile(generate, batch) if is_profiled else seconds(generate, batch))


def seconds(generate: Generate, batch: Batch) -> float:
    """Processor time of one batch."""
    start = time.process_time()
    generate(batch.ids(), batch.new_tokens)
    return time.process_time() - start


def profile(generate: Generate, batch: Batch) -> list[tuple[str, float, int]]:
    """Operators by their own share of the time, and their calls."""
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as profiler

    from duquant.ops.kernel_presence import _KERNELS

    for key, kernel in _KERNELS.items():  # they are called without PyTorch, which names them else
        _KERNELS[key] = record_function(key[0])(kernel)
    with profiler(activities=[ProfilerActivity.CPU]) as found:
        start = time.process_time()
        generate(batch.ids(), batch.new_tokens)
        passed = (time.process_time() - start) * 1e6
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    rows = [(event.key, event.self_cpu_time_total / passed, event.count) for event in events]
    outside = 1 - sum(share for _, share, _ in rows)
    return [*rows[:PROFILED], ("outside of operators", outside, 0)]


class Worker:
    """A contender in its process.

    Args:
        contender: what it runs.
    """

    def __init__(self, contender: Contender) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(contender, theirs))
        self.process.start()
        assert self.pipe.recv() == "ready"

    def ask(self, batch: Batch, *, is_profiled: bool = False) -> Any:
        """Seconds, or a profile, of one batch."""
        self.pipe.send((batch, is_profiled))
        return self.pipe.recv()

    def speed_of_prefill(self, sequences: int, tokens: int, seed: int) -> float:
        """Tokens per second."""
        passed: float = self.ask(Batch(sequences, tokens, 1, seed))
        return sequences * tokens / passed

    def speed_of_decoding(self, sequences: int, seed: int) -> float:
        """New tokens per second, without the first of each sequence."""
        first: float = self.ask(Batch(sequences, 8, 1, seed))
        both: float = self.ask(Batch(sequences, 8, NEW_TOKENS + 1, seed + 1000))
        return sequences * NEW_TOKENS / (both - first)

    def end(self) -> None:
        """Let the process end."""
        self.pipe.send(None)
        self.process.join()


def measure(workers: dict[str, Worker], rounds: int, wanted: list[str]) -> None:
    """Print tokens per second of each, in turns, and at last the table of medians."""
    tasks = {f"prefill {n} x {m}": partial(Worker.speed_of_prefill, sequences=n, tokens=m)
             for n, m in PREFILL}  # fmt: skip
    tasks |= {f"decode {n}": partial(Worker.speed_of_decoding, sequences=n) for n in DECODE}
    tasks = {what: task for what, task in tasks.items() if not wanted or what in wanted}
    speeds: dict[str, dict[str, list[float]]] = {what: {} for what in tasks}
    for turn in range(rounds):
        for what, task in tasks.items():
            for name, worker in workers.items():
                found = task(worker, seed=turn + 1)
                speeds[what].setdefault(name, []).append(found)
                print(f"{what}, {name}: {found:.0f}", flush=True)
    print("| |", " | ".join(workers), "|")
    for what, row in speeds.items():
        cells = [f"{median(row[name]):.0f} ({min(row[name]):.0f}-{max(row[name]):.0f})"
                 for name in workers]  # fmt: skip
        print(f"| {what} |", " | ".join(cells), "|")


def main() -> None:
    """Start the contenders, measure, and end them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("quantized", type=Path)
    parser.add_argument("original", type=Path)
    parser.add_argument("--dtype", default="bfloat16", help="of all but the quantized weights")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], help="rows, such as 'decode 8'")
    parser.add_argument("--profile", action="store_true", help="of the quantized model, instead")
    choices = parser.parse_args()
    models = {"quantized": choices.quantized, "original": choices.original}
    if choices.profile:
        del models["original"]
    workers = {
        f"{name}, {engine}": Worker(Contender(engine, directory, choices.dtype))
        for engine in choices.engines
        for name, directory in models.items()
    }
    if choices.profile:
        for name, worker in workers.items():
            for batch in (Batch(8, 512, 1, 1), Batch(8, 8, NEW_TOKENS, 1)):
                print(name, batch)
                for operator, share, calls in worker.ask(batch, is_profiled=True):
                    print(f"{share:7.1%} {calls:7d} {operator}", flush=True)
    else:
        measure(workers, choices.rounds, choices.only)
    for worker in workers.values():
        worker.end()


if __name__ == "__main__":
    main()
