"""Zigzag permutation against a dealer of cards."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from duquant.ops.permutation import permute_channels, zigzag_permutation
from tests.outliers import seeds

block_sizes, block_counts = st.integers(1, 9), st.integers(1, 7)


def dealt_like_cards(magnitude: list[float], block_size: int) -> list[int]:
    """Sort channels, deal them left to right and then right to left, stack the hands."""
    num_blocks = len(magnitude) // block_size
    deck = sorted(range(len(magnitude)), key=lambda channel: (-magnitude[channel], channel))
    hands: list[list[int]] = [[] for _ in range(num_blocks)]
    block, step = 0, 1
    for channel in deck:
        hands[block].append(channel)
        if 0 <= block + step < num_blocks:
            block += step
        else:
            step = -step
    return [channel for hand in hands for channel in hand]


@given(block_sizes, block_counts, seeds, st.booleans())
def test_permutation_is_the_dealers(
    block_size: int, num_blocks: int, seed: int, with_ties: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.rand(block_size * num_blocks, generator=generator)
    if with_ties:
        magnitude = (magnitude * 3).round()
    permutation = zigzag_permutation(magnitude, block_size)
    assert permutation.tolist() == dealt_like_cards(magnitude.tolist(), block_size)


@given(block_sizes, block_counts, seeds)
def test_permutation_is_a_bijection_and_its_inverse_undoes_it(
    block_size: int, num_blocks: int, seed: int
) -> None:
    width = block_size * num_blocks
    x = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    permutation = zigzag_permutation(x, block_size)
    assert sorted(permutation.tolist()) == list(range(width))
    assert torch.equal(x[permutation][permutation.argsort()], x)


@given(block_sizes, st.integers(2, 7), seeds)
def test_block_means_differ_by_at_most_the_widest_gap(
    block_size: int, num_blocks: int, seed: int
) -> None:
    """Theorem 2 of the paper, for an even number of rounds."""
    rounds = 2 * block_size
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.rand(rounds * num_blocks, generator=generator, dtype=torch.float64)
    permutation = zigzag_permutation(magnitude, rounds)
    means = magnitude[permutation].view(num_blocks, rounds).mean(dim=1)
    gap = magnitude.sort().values.diff().max()
    # Two rounds (there and back) differ between blocks by at most (K - 1) gaps at the far ends.
    assert means.max() - means.min() <= gap * (num_blocks - 1)


def test_permuting_channels_is_indexing_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(12, generator=generator)
    upstream = torch.randn(2, 3, 12, generator=generator)
    results = []
    for permute in (permute_channels, lambda x, p: x[..., p]):
        x = torch.randn(2, 3, 12, generator=generator.manual_seed(1)).requires_grad_()
        y = permute(x, order)
        results.append((y.detach(), *torch.autograd.grad(y, x, upstream)))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
