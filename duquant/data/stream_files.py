"""The streams on disk: written at every boundary, under the index of the block they enter.

A resumed run reads them instead of recomputing the blocks before: that is faster, and it makes the
continuation exact. Each carries a checksum, which is checked before a run goes on from it.

Small streams are drafted in memory, the host's or a GPU's, and then written; a GPU computes on
while they are copied (:mod:`duquant.ops.downloads`). Large ones are never whole in memory: their
draft is the file of the next boundary itself, published under its name when it is full, and chunks
of it are mapped when they are needed.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from duquant.atomic_files import partial, publish
from duquant.checksum import CHECKSUM, RESTORE, UNSET, check_tensors, set_tensors_checksum
from duquant.data.streams import CPU, Stream, Streams, StreamSizes
from duquant.model.file_tensor import FileTensor, lay_out, open_tensors
from duquant.ops.copy_stream import CopyStream
from duquant.ops.downloads import Downloads

BYTES_AT_ONCE = 1 << 26
"""Of a stream on a GPU, on its way to a file; two such pieces at a time."""


class StreamFiles:
    """A file per block boundary, the newest two kept.

    Two, because a checkpoint that points at the newer boundary is written after it: until then a
    killed run continues from the older one.

    Args:
        directory: folder of the files.
        sizes: what a boundary holds.
        in_memory: whether streams are held in memory as well; else they are read where they lie.
        device: in whose memory.
    """

    def __init__(
        self,
        directory: Path,
        sizes: StreamSizes,
        *,
        in_memory: bool = True,
        device: torch.device = CPU,
    ) -> None:
        self.directory = directory
        self.sizes = sizes
        self.in_memory = in_memory
        self.device = device
        self._copies = CopyStream.of(device)  # beside the queue of the thread that computes

    def path(self, block: int) -> Path:
        """File of the streams that enter ``block``."""
        return self.directory / f"block_{block:05d}.safetensors"

    def draft(self, block: int) -> Streams:
        """Room for the streams that enter ``block``, to be filled and then saved."""
        if self.in_memory:
            return Streams.draft(self.sizes, self.device, at_start=block == 0)
        opened = self._lay_out(block)
        full_precision = opened["full_precision"]
        augmented = None
        if block and self.sizes.has_augmented:
            scratch = partial(self.directory / "augmented.safetensors")
            lay_out(scratch, {"augmented": self.sizes.shape}, self.sizes.dtype)
            augmented = open_tensors(scratch)["augmented"]
        return Streams(
            full_precision,
            self._quantized(opened, full_precision),
            torch.zeros(0, *self.sizes.shape[1:], dtype=self.sizes.dtype, device="cpu"),
            augmented,
        )

    def save(self, block: int, streams: Streams) -> Streams:
        """Write the streams that enter ``block``, dropping those older than the boundary before.

        Returns:
            The same streams, to go on with: the draft they came from is not to be used again.
        """
        for older in self._files():
            if older < self.path(block - 1):
                older.unlink()
        if self.in_memory:
            self._write(block, streams)
        calibration_mean = open_tensors(partial(self.path(block)))["statistic"]
        calibration_mean[:] = streams.calibration_mean
        set_tensors_checksum(partial(self.path(block)))
        publish(self.path(block))
        return streams if self.in_memory else self._open(block)

    def load(self, block: int) -> Streams:
        """Open the streams that enter ``block``.

        Raises:
            ValueError: if the file is missing or damaged, naming it, with the remedy.
        """
        check_tensors(self.path(block))
        return self._open(block)

    def _open(self, block: int) -> Streams:
        opened = open_tensors(self.path(block))
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in opened.items()}
        if found != {
            name: (shape, self.sizes.dtype) for name, shape in self._shapes(block).items()
        }:
            raise ValueError(f"{self.path(block)} is damaged: it holds other streams; {RESTORE}")
        full_precision: Stream = opened["full_precision"]
        if self.in_memory:
            full_precision = full_precision[:].to(self.device)
        quantized = self._quantized(opened, full_precision)
        if self.in_memory and quantized is not full_precision:
            quantized = quantized[:].to(self.device)
        return Streams(full_precision, quantized, opened["statistic"][:])

    def remove(self) -> None:
        """Delete all streams, at the end of a run."""
        for file in [*self._files(), *self.directory.glob(".*.safetensors.partial")]:
            file.unlink()
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def _lay_out(self, block: int) -> dict[str, FileTensor]:
        """Begin the file of a boundary, under its temporary name."""
        file, shapes = partial(self.path(block)), self._shapes(block)
        lay_out(file, shapes, self.sizes.dtype, {CHECKSUM: UNSET})
        return open_tensors(file)

    def _shapes(self, block: int) -> dict[str, tuple[int, ...]]:
        sizes = self.sizes
        shapes: dict[str, tuple[int, ...]] = {
            "full_precision": sizes.shape,
            "statistic": (1, *sizes.shape[1:]),
        }
        if sizes.has_quantized and block:
            shapes["quantized"] = sizes.shape
        return shapes

    def _write(self, block: int, streams: Streams) -> None:
        opened = self._lay_out(block)
        parts = {"full_precision": streams.full_precision, "quantized": streams.quantized}
        size = max(1, BYTES_AT_ONCE // self.sizes.sample_bytes)
        with Downloads(self._copies) as downloads:
            for name in parts.keys() & opened.keys():
                for start in range(0, self.sizes.samples, size):
                    part = slice(start, min(start + size, self.sizes.samples))
                    downloads.put(opened[name], part, parts[name][part])

    def _quantized(self, opened: dict[str, FileTensor], full_precision: Stream) -> Stream:
        """The stored quantized stream, the full-precision one it equals, or an empty one."""
        if not self.sizes.has_quantized:
            return full_precision[:0]
        return opened.get("quantized", full_precision)

    def _files(self) -> Iterator[Path]:
        return iter(sorted(self.directory.glob("block_*.safetensors")))
