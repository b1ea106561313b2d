"""The streams of many processes on disk: a folder for each, and any number may go on.

    streams/                     of one process alone
    streams/process_0_of_2/ …    of each of two

A run that is continued by as many processes as it had reads what each wrote. Another number
shares the samples anew: sample ``i`` is number ``i // n`` in the folder of process ``i % n``.
"""

from pathlib import Path

import torch
from torch import Tensor

from duquant.data.streams import StreamFiles, Streams
from duquant.processes import Processes


class StreamShares:
    """The streams of this process's share of the samples, between blocks.

    Args:
        directory: folder of all processes' streams, which all of them see.
        processes: this process among those that share the samples.
    """

    def __init__(self, directory: Path, processes: Processes) -> None:
        self.directory = directory
        self.processes = processes

    def hold(self, block: int) -> bool:
        """Whether the streams that enter ``block`` are there, of all samples."""
        return self._count_of(block) is not None

    def save(self, block: int, streams: Streams) -> None:
        """Write this process's streams that enter ``block``."""
        self._own.save(block, streams)

    def load(self, block: int, *, with_quantized: bool) -> Streams:
        """Read this process's streams that enter ``block``, whoever wrote them.

        Raises:
            ValueError: if a file is missing or damaged, naming it.
        """
        count = self._count_of(block)
        if count in (None, self.processes.count):
            return self._own.load(block, with_quantized=with_quantized)
        written = [
            files.load(block, with_quantized=with_quantized) for files in self._folders(count)
        ]
        return Streams(
            self._reshare([streams.full_precision for streams in written]),
            self._reshare([streams.quantized for streams in written]),
            written[0].statistic,
        )

    def drop_others(self, block: int) -> None:
        """Forget what other numbers of processes wrote, once all streams of ``block`` are written.

        Of theirs only the boundary before is kept, for a run that is killed before its next
        checkpoint (see :class:`StreamFiles`).
        """
        for count in self._counts():
            for files in self._folders(count) if count != self.processes.count else []:
                for file in files.directory.glob("block_*.safetensors"):
                    if file != files.path(block - 1):
                        file.unlink()

    def remove(self) -> None:
        """Delete all processes' streams, at the end of a run."""
        for count in sorted(self._counts(), reverse=True):
            for files in self._folders(count):
                files.remove()

    @property
    def _own(self) -> StreamFiles:
        return self._folders(self.processes.count)[self.processes.rank]

    def _folders(self, count: int) -> list[StreamFiles]:
        if count == 1:
            return [StreamFiles(self.directory)]
        names = (f"process_{rank}_of_{count}" for rank in range(count))
        return [StreamFiles(self.directory / name) for name in names]

    def _counts(self) -> list[int]:
        """Numbers of processes that may have written streams, the present one first."""
        found = (path.name.rpartition("_")[2] for path in self.directory.glob("process_0_of_*"))
        return list(dict.fromkeys([self.processes.count, 1, *sorted(map(int, found))]))

    def _count_of(self, block: int) -> int | None:
        for count in self._counts():
            if all(files.path(block).is_file() for files in self._folders(count)):
                return count
        return None

    def _reshare(self, parts: list[Tensor]) -> Tensor:
        count, total = len(parts), sum(map(len, parts))
        own = range(self.processes.rank, total, self.processes.count)
        samples = [parts[i % count][i // count] for i in own]
        return torch.stack(samples) if samples else parts[0]
