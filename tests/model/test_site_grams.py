"""Gram matrices of a site's tokens, summed up while a block runs."""

import math

import pytest
import torch
from torch import nn

from duquant.model.site_grams import GRAM_COLUMNS, SiteGram, collect_site_grams


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("of_inputs", [True, False])
def test_sums_are_those_of_all_tokens_together(of_inputs: bool) -> None:
    first, second, behind = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(3, 3)
    block = nn.Sequential(first, second, behind)
    chunks = [tokens(2, 5, 4), tokens(1, 5, 4, seed=1)]
    passed = []
    behind.register_forward_hook(lambda *_: passed.append(True))
    found = collect_site_grams(
        {"first": first, "second": second}, block, chunks, of_inputs=of_inputs
    )
    x = torch.cat(chunks).flatten(0, 1)
    hidden = first(x).detach()
    expected = {"first": x, "second": hidden} if of_inputs else {"first": hidden}
    if not of_inputs:
        expected["second"] = second(hidden).detach()
    for site, seen in expected.items():
        torch.testing.assert_close(found[site].gram, seen.T @ seen)
        torch.testing.assert_close(found[site].total, seen.sum(dim=0))
        assert found[site].tokens == 15
    assert not passed


@pytest.mark.parametrize("width", [GRAM_COLUMNS - 1, 2 * GRAM_COLUMNS, 2 * GRAM_COLUMNS + 44])
def test_both_halves_are_there_in_any_width(width: int) -> None:
    x = tokens(20, width)
    sums = SiteGram(torch.zeros(width, width), torch.zeros(width))
    sums.add(x)
    torch.testing.assert_close(sums.gram, x.T @ x)
    off_blocks = sums.gram[:GRAM_COLUMNS, GRAM_COLUMNS:]
    assert torch.equal(off_blocks, sums.gram[GRAM_COLUMNS:, :GRAM_COLUMNS].T)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_call_that_is_not_finite_is_left_out(bad: float) -> None:
    """1e30 is a number, but its square is none in float32."""
    sums, good = SiteGram(torch.zeros(3, 3), torch.zeros(3)), tokens(2, 4, 3)
    damaged = tokens(2, 4, 3, seed=1)
    damaged[1, 2, 0] = bad
    sums.add(good)
    sums.add(damaged)
    rows = good.flatten(0, 1)
    torch.testing.assert_close(sums.gram, rows.T @ rows)
    torch.testing.assert_close(sums.total, rows.sum(dim=0))
    assert sums.tokens == 8
