"""How near the numbers that vLLM serves are to those of transformers, and these to each other.

    python -m tests.benchmarks.served_numbers RUN/model TEXT [--windows 40] [--only vLLM]

Log-probabilities of every token of consecutive windows of a text, float32: by transformers with
both backends and two orders of its sums (``sdpa`` and ``eager`` attention), and by vLLM with both
backends, with its own kernels and exact. The first row is what ``validate`` measures. Exact rows
read a window at a time and are compared with transformers' of the same backend, ``sdpa``, the
others with the first. Behind the relative difference of the perplexity stands its standard error,
from the differences of windows.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from duquant.data.local_text import read_documents
from duquant.data.windows import consecutive_windows
from duquant.export.hugging_face import set_execution


@torch.no_grad()
def by_transformers(directory: Path, windows: Tensor, *, backend: str, attention: str) -> Tensor:
    """Log-probabilities of the tokens that follow the first, ``(windows, length - 1)``."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation=attention
    )
    set_execution(model, backend)  # type: ignore[arg-type]
    rows = []
    for window in windows.split(1):
        found = model(window).logits[:, :-1].float().log_softmax(-1)
        rows.append(found.gather(2, window[:, 1:, None])[..., 0])
    return torch.cat(rows)


def by_vllm(directory: Path, windows: Tensor, *, backend: str, exact: bool) -> Tensor:
    """The same."""
    from tests.serving.served import answers, served

    length = windows.shape[1]
    options = {
        "max_model_len": length + 1,
        "max_num_batched_tokens": 4 * length,
        "block_size": 128,
        "kv_cache_memory_bytes": 1 << 29,
    }
    parts = windows.split(1 if exact else 4)
    with served(directory, backend=backend, exact=exact, **options) as engine:
        found = [answers(engine, part.tolist(), num_tokens=1) for part in parts]
    return torch.stack([answer.logprobs[:-1] for part in found for answer in part])


BACKENDS = ("reference", "integer")
FIRST = "transformers, reference, sdpa"


def contenders(directory: Path, windows: Tensor, only: str) -> Iterator[tuple[str, str, Tensor]]:
    """Name, whom to compare with, and what was computed: those whose names have ``only``."""
    by_name = {
        f"transformers, {backend}, {attention}": partial(
            by_transformers, directory, windows, backend=backend, attention=attention
        )
        for backend in BACKENDS
        for attention in ("sdpa", "eager")
    }
    beside = dict.fromkeys(by_name, FIRST)
    for backend in BACKENDS:
        for name, exact in ((f"vLLM, {backend}", False), (f"vLLM, {backend}, exact", True)):
            by_name[name] = partial(by_vllm, directory, windows, backend=backend, exact=exact)
            beside[name] = f"transformers, {backend}, sdpa" if exact else FIRST
    wanted = {name for name in by_name if only in name}
    wanted |= {FIRST, *(beside[name] for name in wanted)}
    for name, compute in by_name.items():
        if name in wanted:
            yield name, beside[name], compute()


def main() -> None:
    """Print a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--only", default="", help="part of the names of whom to compare")
    choices = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(choices.directory)
    text = "\n\n".join(read_documents(choices.text))
    ids = torch.tensor(tokenizer(text)["input_ids"], device="cpu")
    windows = consecutive_windows(ids, choices.length, choices.windows)
    print(f"{windows.numel()} tokens\n| | perplexity | relative | median | mean |", flush=True)
    known: dict[str, Tensor] = {}
    for name, other, found in contenders(choices.directory, windows, choices.only):
        known[name] = found
        apart = (found - known[other]).abs()
        perplexity = (-found.double().mean()).exp().item()
        by_window = (known[other] - found).double().mean(dim=1)
        relative = by_window.mean().exp().item() - 1
        error = by_window.std().item() / len(by_window) ** 0.5
        print(
            f"| {name} | {perplexity:.4f} | {relative:+.1e} ± {error:.0e} | {apart.median():.2g} "
            f"| {apart.mean():.2g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
