"""How much faster the pruned rotation search is than the naive loop over all rows.

    python -m tests.benchmarks.rotation --steps 16

Calibration tensors of LLaMA-2-7B's sites (2048 tokens) with outlier channels and massive tokens,
and without any. The naive loop multiplies every row by every step and looks through all of them, in
float32. Both searches choose the same matrices: the command fails if they do not. A processor that
others use too stops for them at every one of many short parallel steps: run it alone.
"""

import argparse
import time

import torch
from torch import Tensor

from duquant.ops.greedy_search import greedy_search
from duquant.ops.rotation import random_base

BLOCK = 128


def activation(tokens: int, width: int, *, outliers: bool) -> Tensor:
    """Normal values; with outliers, a few large channels and a few massive tokens."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator) * 0.05
    if outliers:
        x *= torch.exp(0.5 * torch.randn(width, generator=generator))
        x[:, torch.randperm(width, generator=generator)[:6]] *= 40
        x[torch.randperm(tokens, generator=generator)[:3]] *= 20
    return x


def naive_search(rows: Tensor, base: Tensor, max_steps: int) -> Tensor:
    """The ``outlier`` search as Algorithm 1 reads."""
    size, each = rows.shape[-1], torch.arange(len(base))
    product = torch.eye(size).expand_as(base)
    magnitude = rows.abs().flatten(1)
    best, best_peak = product, magnitude.amax(dim=1)
    for _ in range(max_steps):
        channel = magnitude.argmax(dim=1) % size
        order = torch.arange(size).repeat(len(base), 1)
        order[each, channel], order[:, 0] = 0, channel
        step = base[each[:, None, None], order[:, :, None], order[:, None, :]]
        rows, product = rows @ step, product @ step
        magnitude = rows.abs().flatten(1)
        peak = magnitude.amax(dim=1)
        better = peak < best_peak
        best_peak = torch.where(better, peak, best_peak)
        best = torch.where(better.view(-1, 1, 1), product, best)
    return best


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    greedy_search(
        torch.randn(1, BLOCK, BLOCK), torch.eye(BLOCK)[None], 1, follow_row=False
    )  # warm up
    different = 0
    for outliers in (True, False):
        for width in (4096, 11008):
            x = activation(options.tokens, width, outliers=outliers)
            for searches, scope in ((1, "shared"), (width // BLOCK, "per_block")):
                rows = x.view(options.tokens, searches, -1).transpose(0, 1)
                rows = rows.reshape(searches, -1, BLOCK)
                base = random_base(torch.Generator().manual_seed(1))(searches, BLOCK)
                start = time.perf_counter()
                pruned = greedy_search(rows, base, options.steps, follow_row=False)
                middle = time.perf_counter()
                naive = naive_search(rows, base, options.steps)
                ratio = (time.perf_counter() - middle) / (middle - start)
                same = int((pruned == naive).flatten(1).all(dim=1).sum())
                kind = "outliers" if outliers else "no outliers"
                case = f"{options.tokens} x {width}, {kind}, {scope}"
                print(f"{case}: {ratio:.1f} x, {same} of {searches} matrices equal", flush=True)
                different += searches - same
    raise SystemExit(different > 0)


if __name__ == "__main__":
    main()
