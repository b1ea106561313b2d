"""What a block leaves on disk, written behind: the next block is entered meanwhile.

    finish(block)     wait: the last checkpoint is on disk, so what only older ones need may go
                      hand over the block's file, the streams behind it, its record
    enter(next)       computes while they are written
    settle            wait for them, and for those of other processes
    checkpoint        says that the next block's turn has begun; it is handed over as well

So one block's file, one boundary's streams and one checkpoint are held at most. The streams are the
tensors that the next block reads anyway and nothing writes to; the block's file and the checkpoint
are copies. A GPU computes on while its blocks and streams are copied to the host. Streams that are
not held in memory are the file itself, which is flushed before the run goes on.
"""

from functools import partial

import torch
from lightning import Trainer

from callbacks.block_events import BlockRecord
from callbacks.preflight import describe_streams, stream_device
from duquant.calibration import open_streams
from duquant.data.datamodule import CalibrationDataModule
from duquant.data.stream_shares import StreamShares
from duquant.data.streams import CPU, Streams
from duquant.model.surgery import QuantizedBlock
from duquant.modules.language_model import LanguageModel
from duquant.write_behind import WriteBehind


class BoundaryFiles:
    """Hands over what lies between two blocks.

    Args:
        model: whose blocks they are.
        data: says how large the streams are, and who shares them.
        writer: the thread that writes.

    Attributes:
        streams: this process's share of the activations.
    """

    def __init__(
        self, model: LanguageModel, data: CalibrationDataModule, writer: WriteBehind
    ) -> None:
        sizes, in_memory = describe_streams(model, data)
        device = stream_device(model, data)
        self.streams = StreamShares(
            model.output_dir / "streams",
            data.processes,
            sizes,
            in_memory=in_memory or device != CPU,
            device=device,
        )
        self.writer = writer

    def open(
        self, model: LanguageModel, data: CalibrationDataModule, device: torch.device
    ) -> Streams:
        """The streams that enter the current block: those on disk, or embeddings to begin with."""
        index = model.block_index
        if index or self.streams.hold(0):
            return self.streams.load(index)
        windows, draft = data.calibration_windows(), self.streams.draft(0)
        open_streams(model.decoder, windows, draft, device, data.processes)
        return self.save_streams(0, draft)

    def release_older(self, trainer: Trainer) -> None:
        """Wait until the last checkpoint is on disk: from here on nobody needs what is older.

        Process 0 writes it, and all drop streams of their own.
        """
        self.writer.wait()
        trainer.strategy.barrier()

    def write_block(self, model: LanguageModel, quantized: QuantizedBlock) -> None:
        """Hand over the current block.

        Raises:
            ValueError: if a weight is not finite, naming block and linear.
        """
        model.directory.write_block_behind(model.block_index, quantized, self.writer)

    def save_streams(self, block: int, streams: Streams) -> Streams:
        """Hand over the streams that enter ``block``; returns them, to go on with."""
        if self.streams.in_memory:
            self.writer.submit(partial(self.streams.save, block, streams))
            return streams
        return self.streams.save(block, streams)

    def save_record(self, model: LanguageModel, record: BlockRecord) -> None:
        """Hand over the record of a block, which nothing changes any more."""
        self.writer.submit(partial(record.save, model.output_dir))

    def settle(self, trainer: Trainer, block: int) -> None:
        """Wait until everything that enters ``block`` is on disk, in all processes."""
        self.writer.wait()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self.streams.drop_others(block)
