"""Perplexity by the field's protocol, streamed through the model block by block.

The text is tokenized whole, cut into windows that do not overlap, and every window is scored alone:
the mean negative log-likelihood of its tokens after the first. Perplexity is the exponential of the
mean over windows. Windows are equally long, so that is the mean over predicted tokens as well.

Hidden states of many windows go through one block before the next block is loaded, so measuring a
model takes the memory of one block, and the same weights serve several variants of it (full
precision and plain rounding share each load).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from duquant.model.decoder import BlockContext, Decoder

PROTOCOL = "non-overlapping windows of {length} tokens, mean loss over windows"
BlockLoader = Callable[[int], Mapping[str, nn.Module]]
"""Loads block ``index`` of every variant."""
TOKENS_AT_ONCE = 4096


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


def window_losses(logits: Tensor, windows: Tensor) -> Tensor:
    """Mean negative log-likelihood of each window.

    Args:
        logits: ``(windows, tokens, vocabulary)``, any float dtype; scored in float32.
        windows: token ids ``(windows, tokens)``.

    Returns:
        float32 of shape ``(windows,)``.
    """
    scores = logits[:, :-1].float().transpose(1, 2)
    return F.cross_entropy(scores, windows[:, 1:], reduction="none").mean(dim=1)


@torch.no_grad()
def stream_losses(
    decoder: Decoder,
    load_block: BlockLoader,
    variants: Iterable[str],
    windows: Tensor,
    device: torch.device,
    on_block: Callable[[int], Any] | None = None,
) -> dict[str, Tensor]:
    """Losses of windows under several variants of one model, one block in memory at a time.

    Args:
        decoder: embeddings, final norm and head of the model.
        load_block: gives every variant's block ``index``.
        variants: names of the variants.
        windows: token ids ``(windows, tokens)``.
        device: where to compute.
        on_block: told each finished block's index.

    Returns:
        Per variant, the losses ``(windows,)`` on the CPU.
    """
    pieces = windows.split(max(1, TOKENS_AT_ONCE // windows.shape[1]))
    embedded = [decoder.embed(piece, device).cpu() for piece in pieces]
    hidden = {name: list(embedded) for name in variants}
    contexts = decoder.contexts(windows.shape[1], device)
    for index in range(decoder.num_blocks):
        blocks = load_block(index)
        for name, stream in hidden.items():
            block = blocks[name].to(device)
            hidden[name] = [run_block(block, x, contexts[index], device) for x in stream]
        del blocks, block  # before the next ones are loaded
        if on_block is not None:
            on_block(index)
    return {
        name: torch.cat(
            [
                window_losses(decoder.logits(x.to(device)), piece.to(device)).cpu()
                for x, piece in zip(stream, pieces, strict=True)
            ]
        )
        for name, stream in hidden.items()
    }


def run_block(block: nn.Module, x: Tensor, context: BlockContext, device: torch.device) -> Tensor:
    """One block's output ``(batch, tokens, hidden)``, computed on ``device``, kept on the CPU."""
    output: Tensor = block(x.to(device), **context)
    return output.cpu()
