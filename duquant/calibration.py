"""The calibration of one block: what happens between its streams arriving and leaving.

    enter     full-precision targets -> smooth -> R1 P R2 -> ready to learn
    (LWC)     whoever calls trains the block on its samples
    finish    round -> store -> its outputs are what the next block receives

``callbacks/block_progression.py`` takes a model through its blocks within one ``Trainer.fit``, with
checkpoints; :func:`duquant.quantization.quantize` does it in a plain loop.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from duquant.data.streams import BlockSamples, Stream, Streams
from duquant.evaluation.perplexity import TOKENS_AT_ONCE, run_block
from duquant.model.decoder import BlockContext, Decoder
from duquant.model.site_report import SiteReport
from duquant.model.smoothing import observe_peaks
from duquant.model.surgery import QuantizedBlock
from duquant.modules.block import QuantBlock
from duquant.processes import ALONE, Processes


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


class BlockCalibration:
    """One block from the moment its streams arrive until they leave: enter, train, finish.

    Args:
        block: owns what is learned.
        streams: what enters the block.
        behind: draft of what leaves it.
        context: what its forward needs beside hidden states.
        device: where to compute.
        processes: who shares the calibration; ``streams`` are this one's.
    """

    def __init__(
        self,
        block: QuantBlock,
        streams: Streams,
        behind: Streams,
        context: BlockContext,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self.block = block.to(device)
        self.quantized_stream = streams.quantized
        self.behind = behind
        self.context = context
        self.device = device
        self.processes = processes
        self.reports: dict[str, SiteReport] = {}
        self._entering: Streams | None = streams

    @property
    def samples(self) -> BlockSamples | None:
        """What the block trains on; ``None`` where nothing is learned."""
        if not self.block.recipe.has_lwc:
            return None
        behind = self.behind
        return BlockSamples(self.quantized_stream, behind.full_precision, behind.augmented)

    @torch.no_grad()
    def enter(self, layer: nn.Module, generator: torch.Generator) -> None:
        """Make the block ready to train.

        Args:
            layer: the decoder block with its real weights; taken over and changed.
            generator: randomness of the rotation search.

        Raises:
            ValueError: if the processes did not decide the same.
        """
        assert self._entering is not None, "a block is entered once"
        streams, behind, self._entering = self._entering, self.behind, None
        layer = layer.to(self.device)
        with observe_peaks(layer) as peaks:
            self._run(layer, streams.full_precision, behind.full_precision)
        peaks = {site: self.processes.max(peak) for site, peak in peaks.items()}
        if behind.augmented is not None:
            self._run(layer, streams.quantized, behind.augmented)
        mean, self.reports = self.block.enter(
            layer,
            peaks,
            self.context,
            streams.statistic.to(self.device),
            self._quantized_pieces,
            generator,
            processes=self.processes,
        )
        self._require_same_decisions()
        behind.statistic = mean.cpu()

    @torch.no_grad()
    def finish(self, write: Callable[[QuantizedBlock], None] | None) -> Streams:
        """Round the weights, store them, and let the quantized stream pass.

        Args:
            write: stores the finished block; ``None`` where another process does.

        Returns:
            The streams that enter the next block.
        """
        quantized = self.block.quantized
        assert quantized is not None, "enter a block first"
        self.round()
        if write is not None:
            write(quantized)
        quantized.drop_codes()
        self._run(quantized.layer, self.quantized_stream, self.behind.quantized)
        return self.behind

    def round(self) -> None:
        """Choose the weights' codes, which :meth:`finish` does first."""
        self.block.round(self._quantized_pieces)
        self._require_same_decisions()

    def _quantized_pieces(self) -> Iterator[Tensor]:
        stream = self.quantized_stream
        return (stream[piece].to(self.device) for piece in _pieces(stream))

    def _require_same_decisions(self) -> None:
        self.processes.require_same(
            self.block.decisions(),
            "it found other transforms; use equal machines and numbers of threads",
        )

    def _run(self, layer: nn.Module, stream: Stream, output: Stream) -> None:
        for piece in _pieces(stream):
            output[piece] = run_block(layer, stream[piece], self.context, self.device)


def _pieces(stream: Stream) -> Iterator[slice]:
    """Slices of samples ``(samples, tokens, …)`` that go through a block together."""
    size = max(1, TOKENS_AT_ONCE // stream.shape[1])
    return (slice(start, start + size) for start in range(0, len(stream), size))
