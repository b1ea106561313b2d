"""The calibration of one block: what happens between its streams arriving and leaving.

    enter     full-precision targets -> smooth -> R1 P R2 -> ready to learn
    (LWC)     whoever calls trains the block on its samples
    finish    round -> store -> compare with full precision -> its outputs are what the next block
              receives

``callbacks/block_progression.py`` takes a model through its blocks within one ``Trainer.fit``, with
checkpoints; :func:`duquant.quantization.quantize` does it in a plain loop.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from duquant.data.stream_pass import chunk_slices, chunks_on, pass_through
from duquant.data.streams import BlockSamples, Stream, Streams
from duquant.model.block_error import (
    GLIMPSED_TOKENS,
    PROBED_TOKENS,
    BlockError,
    Probe,
    in_the_end,
    measure_block,
    measure_sites,
    num_probed,
    relative_error,
)
from duquant.model.channel_ranges import observe_sites
from duquant.model.decoder import BlockContext, Decoder
from duquant.model.massive_tokens import TokenPeaks, observe_tokens
from duquant.model.site_report import SiteReport
from duquant.model.surgery import QuantizedBlock
from duquant.model.value_rotation import rotate_values, rotated_views
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
    total = torch.zeros(1, *hidden.shape[1:], dtype=torch.float64, device="cpu")
    for chunk in chunk_slices(windows):
        embedded = decoder.embed(windows[chunk], device)
        hidden[chunk] = embedded
        for sample in embedded.cpu():
            total += sample
    streams.calibration_mean = processes.mean(total / len(hidden)).to(hidden.dtype)
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
        self._trains_on = streams.quantized
        if block.recipe.training.inputs == "full_precision":
            self._trains_on = streams.full_precision
        self.behind = behind
        self.context = context
        self.device = device
        self.processes = processes
        self.reports: dict[str, SiteReport] = {}
        self.error = BlockError(None)
        self.conditions: dict[str, float] = {}
        self.damping = ""
        self.token_peaks: dict[str, TokenPeaks] = {}
        self._probe: Probe | None = None
        self._entering: Streams | None = streams

    @property
    def samples(self) -> BlockSamples | None:
        """What the block trains on; ``None`` where nothing is learned."""
        if not self.block.recipe.has_lwc:
            return None
        behind = self.behind
        return BlockSamples(self._trains_on, behind.full_precision, behind.augmented)

    @torch.no_grad()
    def enter(self, layer: nn.Module, generator: torch.Generator) -> None:
        """Make the block ready to train.

        Args:
            layer: the decoder block with its real weights; taken over and changed.
            generator: randomness of the rotation search.

        Raises:
            ValueError: if the processes did not decide the same, or if values are not finite,
                naming block and site.
        """
        assert self._entering is not None, "a block is entered once"
        streams, behind, self._entering = self._entering, self.behind, None
        layer = layer.to(self.device)
        recipe = self.block.recipe
        views, means = rotated_views(layer, recipe), recipe.smoothing.subtract_mean
        with (
            self.block.named(),
            observe_sites(layer, means=means, views=views) as seen,
            observe_tokens(layer) as peaks,
        ):
            self._run(layer, streams.full_precision, behind.full_precision)
        self.token_peaks = {site: peak.of_all(self.processes) for site, peak in peaks.items()}
        ranges = {site: each.of_all(self.processes) for site, each in seen.items()}
        if behind.augmented is not None:
            with self.block.named():
                self._run(layer, streams.quantized, behind.augmented)
        if recipe.rotation.rotate_values:  # behind the targets, which are the model's own
            rotate_values(layer, recipe.rotation.block_size)
        with self.block.named():
            mean, self.reports = self.block.enter(
                layer,
                ranges,
                self.context,
                streams.calibration_mean.to(self.device),
                self._quantized_chunks,
                generator,
                processes=self.processes,
            )
        self._require_same_decisions()
        behind.calibration_mean = mean.cpu()
        self._probe = _probe(streams.full_precision, behind.full_precision, self.processes)

    def site_errors(self) -> dict[str, float]:
        """What each site loses alone, see :func:`measure_sites`; before :meth:`finish`."""
        assert self.block.quantized is not None, "enter a block first"
        block = self.block
        return measure_sites(
            self.block.quantized, block, self._probe_here(), block.recipe, self.processes
        )

    @torch.no_grad()
    def finish(self, write: Callable[[QuantizedBlock], None] | None) -> Streams:
        """Round the weights, store them, and let the quantized stream pass.

        Afterwards :attr:`error` says how far the block is from full precision, and :attr:`damping`
        where rounding needed more damping than the recipe's.

        Args:
            write: stores the finished block; ``None`` where another process does.

        Returns:
            The streams that enter the next block.

        Raises:
            ValueError: if weights or outputs are not finite, naming them.
        """
        quantized = self.block.quantized
        assert quantized is not None, "enter a block first"
        with self.block.named():
            is_nearest = not self.block.recipe.weight_rounding.needs_gram
            self.error = self._measured(PROBED_TOKENS if is_nearest else GLIMPSED_TOKENS)
            self.round()
            if self.error.relative is not None and not is_nearest:
                relative = relative_error(self.block, self._probe_here(), self.processes)
                self.error = in_the_end(self.error, relative)
            if write is not None:
                write(quantized)
            quantized.drop_codes()
            self._run(quantized.layer, self.quantized_stream, self.behind.quantized)
        return self.behind

    def round(self) -> None:
        """End the training and choose the weights' codes, which :meth:`finish` does first."""
        self.conditions = self.block.settle()
        self.damping = self.block.round(self._quantized_chunks)
        self._require_same_decisions()

    def _measured(self, tokens: int) -> BlockError:
        """What is lost at the codes nearest to the weights, and why."""
        block, quantized, probe = self.block, self.block.quantized, self._probe_here(tokens)
        assert quantized is not None
        return measure_block(quantized, block, probe, block.recipe, self.processes)

    def _probe_here(self, tokens: int = PROBED_TOKENS) -> Probe:
        assert self._probe is not None
        count = num_probed(self._probe.inputs.shape[1], self.processes, tokens)
        return Probe(*(stream[:count].to(self.device) for stream in self._probe))

    def _quantized_chunks(self) -> Iterator[Tensor]:
        return chunks_on(self.device, self.quantized_stream)

    def _require_same_decisions(self) -> None:
        self.processes.require_same(
            self.block.decisions(),
            "it found other transforms; use equal machines and numbers of threads",
        )

    def _run(self, layer: nn.Module, stream: Stream, output: Stream) -> None:
        pass_through(layer, stream, output, self.context, self.device)


def _probe(inputs: Stream, targets: Stream, processes: Processes) -> Probe:
    """Copies, so that what entered the block can be dropped."""
    count = num_probed(inputs.shape[1], processes)
    return Probe(inputs[:count].clone(), targets[:count].clone())
