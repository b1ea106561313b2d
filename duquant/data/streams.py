"""Activation streams: what flows from one block to the next while a model is calibrated.

Three tensors meet every block boundary:

* the **full-precision stream**, the hidden states of the original model (targets come from it);
* the **quantized stream**, the hidden states of the model quantized so far (LWC trains on it);
* the **statistic stream**, one sequence, the mean over samples, on which rotations are searched. It
  leaves a block with the weights' initial clip factors, so it does not depend on training.

They are written at every boundary, under the index of the block they enter. A resumed run reads
them instead of recomputing the blocks before: that is faster, and it makes the continuation exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from duquant.durable import write_tensors
from duquant.model.batch import BlockBatch
from duquant.model.checkpoint import open_safetensors
from duquant.processes import ALONE, Processes


@dataclass
class Streams:
    """Hidden states entering one block, on the CPU.

    Attributes:
        full_precision: ``(samples, tokens, hidden)``.
        quantized: likewise; shares memory with ``full_precision`` before block 0, and is empty
            where nothing trains on it (without LWC).
        statistic: ``(1, tokens, hidden)``.
    """

    full_precision: Tensor
    quantized: Tensor
    statistic: Tensor

    @classmethod
    def open(
        cls, hidden: Tensor, *, with_quantized: bool, processes: Processes = ALONE
    ) -> "Streams":
        """Streams entering block 0, where all three start from the embeddings.

        The mean over samples is taken in float64: its rounding then is the same in whatever order
        the samples of all processes are added up.
        """
        quantized = hidden if with_quantized else hidden[:0]
        total = torch.zeros(1, *hidden.shape[1:], dtype=torch.float64)
        for sample in hidden:
            total += sample
        statistic = processes.mean(total / len(hidden)).to(hidden.dtype)
        return cls(hidden, quantized, statistic)


class StreamFiles:
    """The streams on disk: a file per block boundary, the newest two kept.

    Two, because a checkpoint that points at the newer boundary is written after it: until then a
    killed run continues from the older one.

    Args:
        directory: folder of the files.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, block: int) -> Path:
        """File of the streams that enter ``block``."""
        return self.directory / f"block_{block:05d}.safetensors"

    def save(self, block: int, streams: Streams) -> None:
        """Write the streams that enter ``block``, dropping those older than the boundary before."""
        for older in self._files():
            if older < self.path(block - 1):
                older.unlink()
        tensors = {"full_precision": streams.full_precision, "statistic": streams.statistic}
        if streams.quantized.data_ptr() != streams.full_precision.data_ptr():
            tensors["quantized"] = streams.quantized
        write_tensors(self.path(block), tensors)

    def load(self, block: int, *, with_quantized: bool) -> Streams:
        """Read the streams that enter ``block``.

        Raises:
            ValueError: if the file is missing or damaged, naming it.
        """
        with open_safetensors(self.path(block)) as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        full_precision = tensors["full_precision"]
        same = full_precision if with_quantized else full_precision[:0]
        return Streams(full_precision, tensors.get("quantized", same), tensors["statistic"])

    def remove(self) -> None:
        """Delete all streams, at the end of a run."""
        for file in self._files():
            file.unlink()
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def _files(self) -> Iterator[Path]:
        return iter(sorted(self.directory.glob("block_*.safetensors")))


class BlockSamples(Dataset[BlockBatch]):
    """Training samples of one block.

    Args:
        quantized_input: ``(samples, tokens, hidden)``.
        target: likewise.
        augmented_target: likewise, or ``None``.
    """

    def __init__(
        self, quantized_input: Tensor, target: Tensor, augmented_target: Tensor | None = None
    ) -> None:
        self.quantized_input = quantized_input
        self.target = target
        self.augmented_target = augmented_target

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.quantized_input)

    def __getitem__(self, index: int) -> BlockBatch:
        """Sample ``index``."""
        augmented = self.augmented_target
        extra = torch.zeros(0) if augmented is None else augmented[index]
        return BlockBatch(self.quantized_input[index], self.target[index], extra)
