"""Token windows: the published protocol for calibration, no overlap for perplexity."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duquant.data.windows import consecutive_windows, draw_windows


def test_windows_are_drawn_as_the_field_draws_them() -> None:
    """``i = random.randint(0, n - seqlen - 1)`` per sample, seeded once (GPTQ's data loader)."""
    tokens, length = torch.arange(1000) * 3, 48
    reference = random.Random(2)
    starts = [reference.randint(0, 1000 - length - 1) for _ in range(16)]
    windows = draw_windows(tokens, 16, length, random.Random(2))
    assert windows.shape == (16, length)
    for start, window in zip(starts, windows, strict=True):
        assert torch.equal(window, tokens[start : start + length])


def test_another_seed_draws_other_windows() -> None:
    tokens = torch.arange(1000)
    first, second = (draw_windows(tokens, 8, 16, random.Random(seed)) for seed in (2, 3))
    assert not torch.equal(first, second)


def test_text_that_is_too_short_for_a_window() -> None:
    with pytest.raises(ValueError, match=r"has 16 tokens, a window needs 17"):
        draw_windows(torch.arange(16), 1, 16, random.Random(2))
    assert draw_windows(torch.arange(17), 1, 16, random.Random(2)).shape == (1, 16)


def test_fewer_places_than_samples() -> None:
    with pytest.raises(ValueError, match=r"room for 4 windows of 16, but num_samples is 5"):
        draw_windows(torch.arange(20), 5, 16, random.Random(2))
    assert draw_windows(torch.arange(20), 4, 16, random.Random(2)).shape == (4, 16)


@given(tokens=st.integers(1, 300), length=st.integers(1, 40), limit=st.integers(1, 12) | st.none())
def test_consecutive_windows_lie_end_to_end(tokens: int, length: int, limit: int | None) -> None:
    text = torch.arange(tokens)
    if tokens < length:
        with pytest.raises(ValueError, match=f"{tokens} tokens, fewer than one window of {length}"):
            consecutive_windows(text, length, limit)
        return
    windows = consecutive_windows(text, length, limit)
    fitting = tokens // length
    assert windows.shape == (fitting if limit is None else min(fitting, limit), length)
    assert torch.equal(windows.flatten(), text[: windows.numel()])
