"""A tensor that stays on disk: one entry of a safetensors file, read and written chunk by chunk.

Reading maps the chunk that is asked for, so it costs memory only while somebody holds it, and the
operating system keeps in its cache what there is room for. A file is laid out first, with the names
and shapes of its tensors and nothing behind them, and filled afterwards in any order.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from duquant.atomic_files import LENGTH_BYTES
from duquant.model.checkpoint import DTYPES, open_safetensors
from duquant.write_errors import naming


class FileTensor:
    """One tensor of a safetensors file; indexing its first dimension reads or writes.

    Args:
        path: the file.
        name: name of the tensor in it.
        shape: its shape.
        dtype: its dtype.
        start: byte of the file at which its values begin.
    """

    def __init__(
        self, path: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype, start: int
    ) -> None:
        self.path = path
        self.name = name
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self._start = start

    @property
    def device(self) -> torch.device:
        """Where values are once they are read."""
        return torch.device("cpu")

    def __len__(self) -> int:
        """Size of the first dimension."""
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> Tensor:
        """Values at ``index``, mapped from the file.

        Raises:
            ValueError: if the file is missing or damaged, naming it.
        """
        with open_safetensors(self.path) as opened:
            values: Tensor = opened.get_slice(self.name)[index]
        return values

    def __setitem__(self, index: slice, values: Tensor) -> None:
        """Write consecutive entries of the first dimension."""
        first, last, step = index.indices(len(self))
        assert (last - first, step, self.dtype) == (len(values), 1, values.dtype)
        raw = values.detach().cpu().contiguous().view(-1).view(torch.uint8)
        entry = math.prod(self.shape[1:]) * self.dtype.itemsize
        with naming(self.path), self.path.open("r+b") as opened:
            opened.seek(self._start + first * entry)
            opened.write(raw.numpy().data)


def lay_out(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Begin a safetensors file of tensors of one dtype, all zero; it takes no room before them.

    Args:
        path: the file, written anew; its folder is made.
        shapes: shape of every tensor by name.
        dtype: dtype of all of them.
        metadata: what the header says beside them.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        stored = next(key for key, known in DTYPES.items() if known == dtype)
        header[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % LENGTH_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("wb") as opened:
        opened.write(len(encoded).to_bytes(LENGTH_BYTES, "little"))
        opened.write(encoded)
        opened.truncate(LENGTH_BYTES + len(encoded) + end)


def open_tensors(path: Path) -> dict[str, FileTensor]:
    """Every tensor of a safetensors file, by name, without reading any.

    Raises:
        ValueError: if the file is missing or damaged, naming it.
    """
    with open_safetensors(path):  # says what is wrong with it
        pass
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return {
        name: FileTensor(
            path,
            name,
            tuple(entry["shape"]),
            DTYPES[entry["dtype"]],
            LENGTH_BYTES + length + entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }
