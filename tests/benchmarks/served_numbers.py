"""How near the numbers that vLLM serves are to those of transformers, and these to each other.

    python -m tests.benchmarks.served_numbers RUN/model TEXT [--windows 40] [--only vLLM]

Log-probabilities of every token of consecutive windows of a text, float32: by transformers with
both backends and two orders of its sums (``sdpa`` and ``eager`` attention), and by vLLM with both
backends. The first row is what ``validate`` measures; the others are compared with it. Behind the
relative difference of the perplexity stands its standard error, from the differences of windows.
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


def by_vllm(directory: Path, windows: Tensor, *, backend: str) -> Tensor:
    """The same."""
    from tests.serving.served import answers, served

    length = windows.shape[1]
    options = {
        "max_model_len": length + 1,
        "max_num_batched_tokens": 4 * length,
        "block_size": 128,
        "kv_cache_memory_bytes": 1 << 29,
    }
    with served(directory, backend=backend, **options) as engine:
        found = [answers(engine, part.tolist(), num_tokens=1) for part in windows.split(4)]
    return torch.stack([answer.logprobs[:-1] for part in found for answer in part])


def contenders(directory: Path, windows: Tensor, only: str) -> Iterator[tuple[str, Tensor]]:
    """Who computed what, one after the other: the first, and those whose names have ``only``."""
    backends = ("reference", "integer")
    by_name = {
        f"transformers, {backend}, {attention}": partial(
            by_transformers, directory, windows, backend=backend, attention=attention
        )
        for backend in backends
        for attention in ("sdpa", "eager")
    }
    for backend in backends:
        by_name[f"vLLM, {backend}"] = partial(by_vllm, directory, windows, backend=backend)
    for index, (name, compute) in enumerate(by_name.items()):
        if index == 0 or only in name:
            yield name, compute()


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
    first = None
    for name, found in contenders(choices.directory, windows, choices.only):
        first = found if first is None else first
        apart = (found - first).abs()
        perplexity = (-found.double().mean()).exp().item()
        by_window = (first - found).double().mean(dim=1)
        relative = by_window.mean().exp().item() - 1
        error = by_window.std().item() / len(by_window) ** 0.5
        print(
            f"| {name} | {perplexity:.4f} | {relative:+.1e} ± {error:.0e} | {apart.median():.2g} "
            f"| {apart.mean():.2g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
