"""Speed of a quantized model in vLLM beside its original: prefill and decode, tokens per second.

    python -m tests.benchmarks.serving DIRECTORY [--dtype bfloat16] [--compiled]

Each engine runs alone, so call it once for each directory. The best of three rounds counts, because
other work on the machine only ever takes time away.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from tests.serving.served import served

PREFILL = ((1, 512), (8, 512))
"""Sequences and tokens of each."""
DECODE = (1, 8, 32)
"""Sequences; of 64 new tokens."""
NEW_TOKENS = 64
ROUNDS = 3


def seconds(engine: Any, sequences: int, prompt: int, new_tokens: int, seed: int) -> float:
    """Time of a batch of prompts that differ from their first token on."""
    from vllm import SamplingParams

    wanted = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    inputs = [
        {"prompt_token_ids": [(seed * 131 + row * 17 + place * 7) % 1000 + 3
                              for place in range(prompt)]}
        for row in range(sequences)
    ]  # fmt: skip
    start = time.perf_counter()
    engine.generate(inputs, wanted, use_tqdm=False)
    return time.perf_counter() - start


def measure(engine: Any) -> dict[str, float]:
    """Tokens per second by name."""
    speeds, seed = {}, 0
    for sequences, tokens in PREFILL:
        times = []
        for _ in range(ROUNDS):
            seed += 1
            times.append(seconds(engine, sequences, tokens, 1, seed))
        speeds[f"prefill {sequences} x {tokens}"] = sequences * tokens / min(times)
    for sequences in DECODE:
        times = []
        for _ in range(ROUNDS):
            seed += 1
            first = seconds(engine, sequences, 8, 1, seed)
            times.append(seconds(engine, sequences, 8, NEW_TOKENS + 1, seed + 1000) - first)
        speeds[f"decode {sequences}"] = sequences * NEW_TOKENS / min(times)
    return speeds


def main() -> None:
    """Print one line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compiled", action="store_true")
    choices = parser.parse_args()
    options = {
        "dtype": choices.dtype,
        "enforce_eager": not choices.compiled,
        "max_model_len": 1024,
        "max_num_seqs": max(DECODE),
        "max_num_batched_tokens": 4096,
        "block_size": 128,
        "kv_cache_memory_bytes": 1 << 30,
        "enable_prefix_caching": False,
    }
    with served(choices.directory, backend="auto", **options) as engine:
        seconds(engine, 2, 64, 4, 0)
        for name, speed in measure(engine).items():
            print(f"{name}: {speed:.0f} tokens/s")
        del engine


if __name__ == "__main__":
    main()
