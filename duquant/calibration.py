"""The turn of one block: what happens between its streams arriving and leaving.

    enter     full-precision targets -> smooth -> R1 P R2 -> ready to learn
    (LWC)     whoever calls trains the clip factors on the turn's samples
    finish    freeze -> its outputs are what the next block receives

``callbacks/block_progression.py`` takes a model through its blocks within one ``Trainer.fit``, with
checkpoints; :func:`duquant.quantization.quantize` does it in a plain loop.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from duquant.data.streams import BlockSamples, Streams
from duquant.evaluation.perplexity import TOKENS_AT_ONCE, run_block
from duquant.model.decoder import BlockContext, Decoder
from duquant.model.site_report import SiteReport
from duquant.model.smoothing import observe_peaks
from duquant.modules.block import QuantBlock
from duquant.processes import ALONE, Processes


@dataclass
class BlockTurn:
    """A block that was entered.

    Attributes:
        samples: what its clip factors train on; ``None`` without LWC.
        reports: what each site's transform did.
        target: the full-precision stream behind the block.
        quantized: the quantized stream before it.
        statistic: the statistic stream behind it.
    """

    samples: BlockSamples | None
    reports: dict[str, SiteReport]
    target: Tensor
    quantized: Tensor
    statistic: Tensor


@torch.no_grad()
def open_streams(
    decoder: Decoder,
    windows: Tensor,
    device: torch.device,
    *,
    with_quantized: bool,
    processes: Processes = ALONE,
) -> Streams:
    """Streams that enter block 0: embeddings of this process's share of ``(samples, tokens)``."""
    pieces = processes.share(windows).split(_windows_at_once(windows.shape[1]))
    hidden = torch.cat([decoder.embed(piece, device).cpu() for piece in pieces])
    return Streams.open(hidden, with_quantized=with_quantized, processes=processes)


@torch.no_grad()
def enter_block(
    block: QuantBlock,
    layer: nn.Module,
    streams: Streams,
    context: BlockContext,
    generator: torch.Generator,
    device: torch.device,
    processes: Processes = ALONE,
) -> BlockTurn:
    """Make a block ready to train.

    Args:
        block: owns the clip factors.
        layer: the decoder block with its real weights; taken over and changed.
        streams: what enters the block.
        context: what its forward needs beside hidden states.
        generator: randomness of the rotation search.
        device: where to compute.
        processes: who shares the calibration; ``streams`` are this one's.

    Raises:
        ValueError: if the processes did not decide the same.
    """
    layer, recipe = layer.to(device), block.recipe
    with observe_peaks(layer) as peaks:
        target = _run_stream(layer, streams.full_precision, context, device)
    peaks = {site: processes.max(peak) for site, peak in peaks.items()}
    augmented = None
    if recipe.has_lwc and recipe.lwc.augmented_loss:
        augmented = _run_stream(layer, streams.quantized, context, device)
    statistic, reports = block.to(device).enter(
        layer,
        peaks,
        context,
        streams.statistic.to(device),
        streams.quantized,
        generator,
        processes=processes,
    )
    processes.require_same(
        block.decisions(), "it found other transforms; use equal machines and numbers of threads"
    )
    samples = BlockSamples(streams.quantized, target, augmented) if recipe.has_lwc else None
    return BlockTurn(samples, reports, target, streams.quantized, statistic.cpu())


@torch.no_grad()
def finish_block(block: QuantBlock, turn: BlockTurn, device: torch.device) -> Streams:
    """Fix the block's weights; returns the streams that enter the next block."""
    assert block.quantized is not None, "enter a block first"
    block.quantized.freeze()
    quantized = _run_stream(block.quantized.layer, turn.quantized, block.context, device)
    return Streams(turn.target, quantized, turn.statistic)


def _windows_at_once(length: int) -> int:
    return max(1, TOKENS_AT_ONCE // length)


def _run_stream(
    block: nn.Module, stream: Tensor, context: BlockContext, device: torch.device
) -> Tensor:
    if not len(stream):
        return stream
    pieces = stream.split(_windows_at_once(stream.shape[1]))
    return torch.cat([run_block(block, piece, context, device) for piece in pieces])
