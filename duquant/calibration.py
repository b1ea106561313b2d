"""The turn of one block: what happens between its streams arriving and leaving.

    enter     full-precision targets -> smooth -> R1 P R2 -> ready to learn
    (LWC)     whoever calls trains the clip factors on the turn's samples
    finish    compare with full precision -> freeze -> its outputs are what the next block receives

``callbacks/block_progression.py`` takes a model through its blocks within one ``Trainer.fit``, with
checkpoints; :func:`duquant.quantization.quantize` does it in a plain loop.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from duquant.data.streams import BlockSamples, Stream, Streams
from duquant.evaluation.perplexity import TOKENS_AT_ONCE
from duquant.model.block_error import BlockError, Probe, measure_block, num_probed
from duquant.model.decoder import BlockContext, Decoder
from duquant.model.site_report import SiteReport
from duquant.model.smoothing import observe_peaks
from duquant.modules.block import QuantBlock
from duquant.ops.finite import require_finite
from duquant.processes import ALONE, Processes


@dataclass
class BlockTurn:
    """A block that was entered.

    Attributes:
        samples: what its clip factors train on; ``None`` without LWC.
        reports: what each site's transform did.
        quantized: the quantized stream before it.
        behind: the streams behind it, a draft that lacks the quantized one.
        probe: some samples before and behind it, in full precision.
        error: what quantization costs it, once it is finished.
    """

    samples: BlockSamples | None
    reports: dict[str, SiteReport]
    quantized: Stream
    behind: Streams
    probe: Probe
    error: BlockError | None = None


@torch.no_grad()
def open_streams(
    decoder: Decoder,
    windows: Tensor,
    streams: Streams,
    device: torch.device,
    processes: Processes = ALONE,
) -> None:
    """Fill the streams that enter block 0: embeddings of token ids ``(samples, tokens)``.

    The mean over samples is taken in float64: its rounding then is the same in whatever order the
    samples of all processes are added up.

    Args:
        decoder: embeds tokens.
        windows: token ids of all samples.
        streams: draft of this process's share.
        device: where to compute.
        processes: who shares the samples.
    """
    hidden, windows = streams.full_precision, processes.share(windows)
    total = torch.zeros(1, *hidden.shape[1:], dtype=torch.float64)
    for piece in _pieces(windows):
        embedded = decoder.embed(windows[piece], device).cpu()
        hidden[piece] = embedded
        for sample in embedded:
            total += sample
    streams.statistic = processes.mean(total / len(hidden)).to(hidden.dtype)
    decoder.release()


@torch.no_grad()
def enter_block(
    block: QuantBlock,
    layer: nn.Module,
    streams: Streams,
    behind: Streams,
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
        behind: draft of what leaves it; all but the quantized stream is filled in.
        context: what its forward needs beside hidden states.
        generator: randomness of the rotation search.
        device: where to compute.
        processes: who shares the calibration; ``streams`` are this one's.

    Raises:
        ValueError: if the processes did not decide the same, or if values are not finite, naming
            block and site.
    """
    layer, recipe = layer.to(device), block.recipe
    with block.named(), observe_peaks(layer) as peaks:
        _run_stream(layer, streams.full_precision, behind.full_precision, context, device)
    peaks = {site: processes.max(peak) for site, peak in peaks.items()}
    if behind.augmented is not None:
        with block.named():
            _run_stream(layer, streams.quantized, behind.augmented, context, device)
    quantized = streams.quantized
    with block.named():
        statistic, reports = block.to(device).enter(
            layer,
            peaks,
            context,
            streams.statistic.to(device),
            (quantized[piece] for piece in _pieces(quantized)),
            generator,
            processes=processes,
        )
    processes.require_same(
        block.decisions(), "it found other transforms; use equal machines and numbers of threads"
    )
    behind.statistic = statistic.cpu()
    samples = BlockSamples(quantized, behind.full_precision, behind.augmented)
    probe = _probe(streams.full_precision, behind.full_precision, processes)
    return BlockTurn(samples if recipe.has_lwc else None, reports, quantized, behind, probe)


@torch.no_grad()
def finish_block(block: QuantBlock, turn: BlockTurn, device: torch.device) -> Streams:
    """Fix the block's weights; returns the streams that enter the next block.

    Afterwards ``turn.error`` says how far the block is from full precision.

    Raises:
        ValueError: if the block's outputs are not finite, naming it.
    """
    assert block.quantized is not None, "enter a block first"
    probe = Probe(*(stream.to(device) for stream in turn.probe))
    turn.error = measure_block(block.quantized, block, probe, block.recipe, block.processes)
    block.quantized.freeze()
    layer, behind = block.quantized.layer, turn.behind
    with block.named():
        _run_stream(layer, turn.quantized, behind.quantized, block.context, device)
    return behind


def _probe(inputs: Stream, targets: Stream, processes: Processes) -> Probe:
    """Copies, so that what entered the block can be dropped."""
    count = num_probed(inputs.shape[1], processes)
    return Probe(inputs[:count].clone(), targets[:count].clone())


def _pieces(stream: Stream) -> Iterator[slice]:
    """Slices of samples ``(samples, tokens, …)`` that go through a block together."""
    size = max(1, TOKENS_AT_ONCE // stream.shape[1])
    return (slice(start, start + size) for start in range(0, len(stream), size))


def _run_stream(
    block: nn.Module,
    stream: Stream,
    output: Stream,
    context: BlockContext,
    device: torch.device,
) -> None:
    for piece in _pieces(stream):
        values = block(stream[piece].to(device), **context)
        require_finite(values, "values of the block's output", values.dtype)
        output[piece] = values.cpu()
