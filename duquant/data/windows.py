"""Token windows: drawn at random for calibration, laid through the text for perplexity."""

import random

import torch
from torch import Tensor


def draw_windows(tokens: Tensor, count: int, length: int, generator: random.Random) -> Tensor:
    """Windows at random places, as the field draws calibration samples.

    Args:
        tokens: one long sequence, shape ``(n,)``.
        count: number of windows.
        length: tokens of a window.
        generator: Python's generator; the published protocol is ``random.Random(seed)``.

    Returns:
        Shape ``(count, length)``.

    Raises:
        ValueError: if the text is shorter than a window or has fewer places than windows.
    """
    last_start = tokens.numel() - length - 1
    if last_start < 0:
        raise ValueError(
            f"the calibration text has {tokens.numel()} tokens, a window needs {length + 1}: give "
            f"a longer text or a smaller sequence_length"
        )
    if last_start + 1 < count:
        raise ValueError(
            f"the calibration text has {tokens.numel()} tokens, room for {last_start + 1} windows "
            f"of {length}, but num_samples is {count}: give a longer text or ask for fewer"
        )
    starts = [generator.randint(0, last_start) for _ in range(count)]
    return torch.stack([tokens[start : start + length] for start in starts])


def consecutive_windows(
    tokens: Tensor, length: int, limit: int | None = None, stride: int | None = None
) -> Tensor:
    """Windows from the start of the text, end to end or overlapping; a shorter rest is dropped.

    Args:
        tokens: one long sequence, shape ``(n,)``.
        length: tokens of a window.
        limit: windows at most (default: all).
        stride: tokens between the starts of two windows (default: ``length``, no overlap).

    Returns:
        Shape ``(windows, length)``.

    Raises:
        ValueError: if the text is shorter than one window.
    """
    if tokens.numel() < length:
        raise ValueError(
            f"the text has {tokens.numel()} tokens, fewer than one window of {length}: give a "
            f"longer text or a smaller sequence_length"
        )
    return tokens.unfold(0, length, stride or length)[:limit]
