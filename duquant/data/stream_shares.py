"""The streams of many processes on disk: a folder for each, and any number may go on.

    streams/                     of one process alone
    streams/process_0_of_2/ …    of each of two

A run that is continued by as many processes as it had reads what each wrote. Another number
shares the samples anew: sample ``i`` is number ``i // n`` in the folder of process ``i % n``.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch

from duquant.data.stream_files import StreamFiles
from duquant.data.streams import CPU, Stream, Streams, StreamSizes
from duquant.processes import Processes

FOLDER = re.compile("process_(0|[1-9][0-9]*)_of_([1-9][0-9]*)")


class StreamShares:
    """The streams of this process's share of the samples, between blocks.

    Args:
        directory: folder of all processes' streams, which all of them see.
        processes: this process among those that share the samples.
        sizes: of this process's share.
        in_memory: see :class:`StreamFiles`.
        device: likewise.
    """

    def __init__(
        self,
        directory: Path,
        processes: Processes,
        sizes: StreamSizes,
        *,
        in_memory: bool = True,
        device: torch.device = CPU,
    ) -> None:
        self.directory = directory
        self.processes = processes
        self.sizes = sizes
        own = self._folder(processes.rank, processes.count)
        self._own = StreamFiles(own, sizes, in_memory=in_memory, device=device)

    @property
    def in_memory(self) -> bool:
        """Whether streams are held in memory beside their files."""
        return self._own.in_memory

    def hold(self, block: int) -> bool:
        """Whether the streams that enter ``block`` are there, of all samples."""
        return self._count_of(block) is not None

    def draft(self, block: int) -> Streams:
        """Room for this process's streams that enter ``block``."""
        return self._own.draft(block)

    def save(self, block: int, streams: Streams) -> Streams:
        """Write this process's streams that enter ``block``; returns them, to go on with."""
        return self._own.save(block, streams)

    def load(self, block: int) -> Streams:
        """Open this process's streams that enter ``block``, whoever wrote them.

        Raises:
            ValueError: if a file is missing or damaged, naming it.
        """
        count = self._count_of(block)
        if count in (None, self.processes.count):
            return self._own.load(block)
        written = [files.load(block) for files in self._folders(count)]
        draft = self.draft(block)
        self._share([streams.full_precision for streams in written], draft.full_precision)
        if draft.quantized is not draft.full_precision:
            self._share([streams.quantized for streams in written], draft.quantized)
        draft.calibration_mean = written[0].calibration_mean
        return self.save(block, draft)

    def drop_others(self, block: int) -> None:
        """Forget what other numbers of processes wrote, once all streams of ``block`` are written.

        Of theirs only the boundary before is kept, for a run that is killed before its next
        checkpoint (see :class:`StreamFiles`).
        """
        for count, folders in self._written().items():
            for files in folders if count != self.processes.count else []:
                for file in files.directory.glob("block_*.safetensors"):
                    if file != files.path(block - 1):
                        file.unlink()

    def remove(self) -> None:
        """Delete all processes' streams, at the end of a run."""
        for _, folders in sorted(self._written().items(), reverse=True):
            for files in folders:
                files.remove()

    def _folder(self, rank: int, count: int) -> Path:
        name = "" if count == 1 else f"process_{rank}_of_{count}"
        return self.directory / name

    def _folders(self, count: int) -> list[StreamFiles]:
        """What ``count`` processes wrote, to be read where it lies."""
        return [self._files(self._folder(rank, count), count) for rank in range(count)]

    def _files(self, folder: Path, count: int) -> StreamFiles:
        share = replace(self.sizes, samples=self.sizes.samples * self.processes.count // count)
        return StreamFiles(folder, share, in_memory=False)

    def _written(self) -> dict[int, list[StreamFiles]]:
        """The folders that are there, by the number of processes that wrote them."""
        found: dict[int, list[StreamFiles]] = {1: self._folders(1)}
        for path in sorted(self.directory.glob("process_*_of_*")):
            name = FOLDER.fullmatch(path.name)
            if name and int(name[1]) < int(name[2]) and path.is_dir():
                found.setdefault(int(name[2]), []).append(self._files(path, int(name[2])))
        return found

    def _counts(self) -> list[int]:
        """Numbers of processes of which all have written streams, the present one first."""
        found = [count for count, folders in self._written().items() if len(folders) == count]
        return list(dict.fromkeys([self.processes.count, 1, *sorted(found)]))

    def _count_of(self, block: int) -> int | None:
        for count in self._counts():
            if all(files.path(block).is_file() for files in self._folders(count)):
                return count
        return None

    def _share(self, parts: list[Stream], own: Stream) -> None:
        """Collect this process's samples from the shares of others."""
        count, processes = len(parts), self.processes
        for place in range(len(own)):
            sample = place * processes.count + processes.rank
            at = sample // count
            own[place : place + 1] = parts[sample % count][at : at + 1]
