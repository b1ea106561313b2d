"""How much faster the pruned rotation search is than the plain loop over all rows.

    python -m tests.benchmarks.rotation --steps 16

Calibration tensors of LLaMA-2-7B's sites (2048 tokens) with outlier channels and massive tokens,
and without any; both searches choose the same matrices, which is checked.
"""

import argparse
import time

import torch
from torch import Tensor

from duquant.ops.greedy_search import greedy_search
from duquant.ops.rotation import random_base
from tests.ops.test_greedy_search import plain_search

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


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
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
                plain = plain_search(rows, base, options.steps, follow_row=False)
                ratio = (time.perf_counter() - middle) / (middle - start)
                assert torch.equal(pruned, plain)
                kind = "outliers" if outliers else "no outliers"
                print(f"{options.tokens} x {width}, {kind}, {scope}: {ratio:.1f} x", flush=True)


if __name__ == "__main__":
    main()
