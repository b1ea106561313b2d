"""Perplexity by the field's protocol, streamed through the model block by block.

The text is tokenized whole, cut into windows that do not overlap, and every window is scored alone:
the mean negative log-likelihood of its tokens after the first. Perplexity is the exponential of the
mean over windows. Windows are equally long, so that is the mean over predicted tokens as well.
With a stride, windows overlap and only the last predictions of each count, so that every one of
them sees at least ``length - stride`` tokens; the number gets smaller, the time longer.

Hidden states of many windows go through one block before the next block is loaded, so measuring a
model takes the memory of one block, and the same weights serve several variants of it (full
precision and plain rounding share each load).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from duquant.model.block_forward import TOKENS_AT_ONCE, run_block
from duquant.model.decoder import Decoder

BlockLoader = Callable[[int], Iterable[tuple[str, nn.Module]]]
"""Gives block ``index`` of every variant by name, one after the other; each is run before the next
is asked for."""
LOGITS_AT_ONCE = 1 << 25
"""Entries of the logits that are in memory together."""


class Perplexity(MeanMetric):
    """``exp`` of the mean negative log-likelihood, accumulated in float64.

    Args:
        device: where it is accumulated; moving it later would make torchmetrics round every update
            to float32.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(nan_strategy="disable")
        self.to(device).set_dtype(torch.float64)

    def compute(self) -> Tensor:
        """Perplexity of all windows so far."""
        return super().compute().exp()

    def finite(self, what: str) -> float:
        """The same as a number.

        Raises:
            ValueError: if it is NaN or infinite, saying what was measured.
        """
        value = float(self.compute())
        if not math.isfinite(value):
            raise ValueError(
                f"the perplexity ({what}) is {value}: the model's numbers are not finite; use "
                f"--model.dtype float32, or check its weights and config.json"
            )
        return value


def describe_windows(length: int, stride: int) -> str:
    """How windows are laid and scored, in words."""
    if stride == length:
        return f"non-overlapping windows of {length} tokens, mean loss over windows"
    return f"windows of {length} tokens every {stride}, mean loss of their last {stride}"


def window_losses(logits: Tensor, windows: Tensor, num_scored: int | None = None) -> Tensor:
    """Mean negative log-likelihood of each window.

    Args:
        logits: ``(windows, tokens, vocabulary)``, any float dtype; exponentials are float32.
        windows: token ids ``(windows, tokens)``.
        num_scored: predictions that count, from the window's end (default: all).

    Returns:
        float64 of shape ``(windows,)``, on the CPU.
    """
    first = first_scored(windows, num_scored)
    return _token_losses(logits[:, first:-1], windows[:, first + 1 :]).mean(dim=1)


@torch.no_grad()
def stream_losses(
    decoder: Decoder,
    load_block: BlockLoader,
    variants: Iterable[str],
    windows: Tensor,
    device: torch.device,
    on_block: Callable[[int], Any] | None = None,
    num_scored: int | None = None,
) -> dict[str, Tensor]:
    """Losses of windows under several variants of one model, one block in memory at a time.

    Args:
        decoder: embeddings, final norm and head of the model.
        load_block: gives every variant's block ``index``.
        variants: names of the variants.
        windows: token ids ``(windows, tokens)``.
        device: where to compute.
        on_block: told each finished block's index.
        num_scored: predictions of a window that count, from its end (default: all).

    Returns:
        Per variant, the losses ``(windows,)``, float64 on the CPU.
    """
    chunks = windows.split(max(1, TOKENS_AT_ONCE // windows.shape[1]))
    embedded = [decoder.embed(chunk, device).cpu() for chunk in chunks]
    hidden = {name: list(embedded) for name in variants}
    contexts = decoder.contexts(windows.shape[1], device)
    decoder.release()
    for index in range(decoder.num_blocks):
        passed = set()
        for name, block in load_block(index):
            block.to(device)
            stream = hidden[name]
            for place, x in enumerate(stream):
                stream[place] = run_block(block, x, contexts[index], device)
            passed.add(name)
            del block  # before the next one is loaded
        assert passed == hidden.keys()
        if on_block is not None:
            on_block(index)
    losses = {
        name: torch.cat(
            [
                _hidden_losses(decoder, x.to(device), chunk.to(device), num_scored)
                for x, chunk in zip(stream, chunks, strict=True)
            ]
        )
        for name, stream in hidden.items()
    }
    decoder.release()
    return losses


def _hidden_losses(
    decoder: Decoder, hidden: Tensor, windows: Tensor, num_scored: int | None
) -> Tensor:
    """Losses from the last block's output, a few tokens' logits in memory at a time."""
    first = first_scored(windows, num_scored)
    size = max(1, LOGITS_AT_ONCE // int(decoder.config.vocab_size) // len(windows))
    losses = []
    for start in range(first, windows.shape[1] - 1, size):
        end = min(start + size, windows.shape[1] - 1)
        losses.append(
            _token_losses(decoder.logits(hidden[:, start:end]), windows[:, start + 1 : end + 1])
        )
    return torch.cat(losses, dim=1).mean(dim=1)


def first_scored(windows: Tensor, num_scored: int | None) -> int:
    """Place of the first token of a window whose prediction counts."""
    return 0 if num_scored is None else max(0, windows.shape[1] - 1 - num_scored)


def _token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of every target ``(windows, tokens)``, float64 on the CPU.

    Probabilities are summed along the vocabulary as it lies in memory, pairwise, and the logarithm
    is float64: libraries that add 152,000 of them one after the other are biased by 1e-5 and more.
    """
    logits = logits.float()
    largest = logits.amax(dim=-1, keepdim=True)
    total = (logits - largest).exp_().sum(dim=-1)
    target = logits.gather(-1, targets.unsqueeze(-1))
    total, largest, target = (part.cpu().double() for part in (total, largest, target))
    return total.log() + (largest - target).squeeze(-1)


@torch.no_grad()
def model_losses(
    model: Any,
    windows: Tensor,
    num_scored: int | None = None,
    on_windows: Callable[[int], Any] | None = None,
) -> Tensor:
    """Losses of windows under a model that lies in memory whole.

    Args:
        model: a transformers model.
        windows: token ids ``(windows, tokens)``.
        num_scored: predictions of a window that count, from its end (default: all).
        on_windows: told how many windows have just been scored.

    Returns:
        float64 ``(windows,)`` on the CPU.
    """
    losses = []
    for chunk in windows.split(max(1, TOKENS_AT_ONCE // windows.shape[1])):
        ids = chunk.to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        losses.append(window_losses(logits, ids, num_scored))
        if on_windows is not None:
            on_windows(len(chunk))
    return torch.cat(losses)
