"""Reading a model directory lazily: one tensor at a time, from safetensors only.

A checkpoint is an index from tensor names to files. Nothing is read until a block asks for its
tensors, so memory holds one block and never the model. Pickles (``*.bin``) are refused: they can
run code.

Names are those of a causal language model, ``model.layers.0.…`` and ``lm_head.weight``. A file that
``AutoModel.save_pretrained`` wrote holds the model without a head, and its names lack ``model.``
(Qwen3-Embedding); it is read as if they had it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from duquant.json_files import read_json as read_json
from duquant.model.hub import hub_answers
from duquant.user_paths import user_path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BASE, HEAD = "model.", "lm_head."
"""What names of a causal language model begin with."""
BASE_MARKS = ("layers.", "embed_tokens.")
"""What only names without ``model.`` begin with."""
EMBEDDED = {"quickstart": Path(__file__).parents[1] / "quickstart" / "model"}
"""Models inside the package, by name."""
DTYPES = {
    "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
"""safetensors' names of dtypes."""
SAMPLES, SAMPLED_BYTES = 256, 1 << 14
"""What is read of each weight file to recognize it: its start and places all over it."""
FILES_OF_A_MODEL = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


class WeightIndex(TypedDict):
    """What :data:`INDEX` holds."""

    weight_map: dict[str, str]


def find_model_directory(pretrained: str) -> Path:
    """Directory of a local model, or of one fetched from the Hugging Face hub.

    Args:
        pretrained: a directory, a hub id ``owner/name``, or "quickstart" for the embedded model.

    Raises:
        ValueError: if neither leads to a model.
    """
    path = EMBEDDED.get(pretrained) or user_path(pretrained)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} is not a model directory: it has no config.json")
        _require_regular_files(path)
        return path
    if path.exists():
        raise ValueError(f"{path} is a file; give the directory that holds config.json")
    if pretrained.count("/") != 1 or pretrained.startswith((".", "/", "~")):
        raise ValueError(f"there is no model directory {pretrained}")
    answers = hub_answers()
    try:
        return Path(
            snapshot_download(
                pretrained, allow_patterns=FILES_OF_A_MODEL, local_files_only=not answers
            )
        )
    except Exception as error:
        reason = f"did not give it ({type(error).__name__})" if answers else "does not answer"
        raise ValueError(
            f"there is no model directory {pretrained}, and the hub {reason}: check the name, your "
            f"network and your access"
        ) from error


def _require_regular_files(directory: Path) -> None:
    """Refuse what would be waited for without end, like a pipe."""
    for path in sorted(directory.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is not a regular file")


class Checkpoint:
    """Tensors of a model directory by name.

    Args:
        directory: holds ``model.safetensors``, or shards and their index.

    Attributes:
        files: the file of every tensor.

    Raises:
        ValueError: if weights are missing, damaged, or not safetensors.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        stored = self._index()
        self._stored_names = full_names(stored)
        if len(self._stored_names) < len(stored):
            raise ValueError(f"{directory}: the weights hold tensors with and without {BASE!r}")
        self.files = {name: stored[as_stored] for name, as_stored in self._stored_names.items()}

    def _index(self) -> dict[str, Path]:
        index = self.directory / INDEX
        if index.exists():
            files = _read_index(index)
            for file in sorted(set(files.values())):
                with open_safetensors(file) as opened:
                    missing = {n for n, f in files.items() if f == file} - set(opened.keys())
                if missing:
                    raise ValueError(f"{file} lacks {min(missing)}, which {index.name} promises")
            return files
        file = self.directory / WEIGHTS
        if not file.exists():
            pickles = sorted(self.directory.glob("*.bin")) + sorted(self.directory.glob("*.pt*"))
            found = (
                f" (found {pickles[0].name}: convert it to safetensors first)" if pickles else ""
            )
            raise ValueError(f"{self.directory} holds no {WEIGHTS} and no {INDEX}{found}")
        with open_safetensors(file) as opened:
            return dict.fromkeys(opened.keys(), file)

    def read(self, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors whose names start with ``prefix``, which is cut off, in ``dtype``."""
        return {
            name.removeprefix(prefix): tensor.to(dtype)
            for name, tensor in self.tensors(n for n in self.files if n.startswith(prefix))
        }

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors one after the other, mapped as they are stored, in the order of the files."""
        by_file: dict[Path, dict[str, str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], {})[self._stored_names[name]] = name
        for file, wanted in by_file.items():
            for as_stored, tensor in _read(file, list(wanted)):
                yield wanted[as_stored], tensor

    def drop(self, name: str) -> None:
        """Forget a tensor."""
        del self.files[name], self._stored_names[name]

    def rename(self, name: str, new: str) -> None:
        """Call a tensor by another name."""
        self.files[new] = self.files.pop(name)
        self._stored_names[new] = self._stored_names.pop(name)

    def read_from(self, file: Path) -> None:
        """From now on read every tensor that this file holds from there."""
        with open_safetensors(file) as opened:
            for name in opened.keys():  # noqa: SIM118
                self.files[name], self._stored_names[name] = file, name

    def digest(self) -> str:
        """What the configuration and places all over the weights say, 16 hexadecimal digits."""
        digest = hashlib.sha256((self.directory / "config.json").read_bytes())
        for file in sorted(set(self.files.values())):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with file.open("rb") as opened:
                for place in range(SAMPLES):
                    opened.seek(size * place // SAMPLES)
                    digest.update(opened.read(SAMPLED_BYTES))
        return digest.hexdigest()[:16]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, read from the file's header."""
        with open_safetensors(self.files[name]) as opened:
            return tuple(opened.get_slice(self._stored_names[name]).get_shape())


def _read_index(index: Path) -> dict[str, Path]:
    """The file of every tensor, as an index maps them."""
    names = read_json(index, WeightIndex)["weight_map"]
    if not names:
        raise ValueError(f"{index} is damaged: it maps no tensors to files")
    return {name: index.parent / file for name, file in names.items()}


def full_names(stored: Iterable[str]) -> dict[str, str]:
    """Stored names by the names they have in a causal language model."""
    names = list(stored)
    if not any(name.startswith(BASE_MARKS) for name in names):
        return dict(zip(names, names, strict=True))
    return {n if n.startswith((BASE, HEAD)) else BASE + n: n for n in names}


def open_safetensors(file: Path) -> Any:
    """Open a safetensors file for lazy reading.

    Raises:
        ValueError: if it is missing, truncated or not safetensors at all, naming the file.
    """
    if file.exists() and not file.is_file():  # a pipe without a writer would wait for ever
        raise ValueError(f"{file} is not a regular file")
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing") from error
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or not a safetensors file ({error})") from error


def meta_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """Shape and dtype of every stored tensor, as tensors on the meta device.

    Raises:
        ValueError: if a file is missing, damaged, or holds a dtype nobody calibrates or stores.
    """
    tensors = {}
    for file in files:
        with open_safetensors(file) as opened:
            for name in opened.keys():  # noqa: SIM118
                entry = opened.get_slice(name)
                dtype = DTYPES.get(entry.get_dtype())
                if dtype is None:
                    raise ValueError(f"{file}: {name} has an unknown dtype, {entry.get_dtype()}")
                tensors[name] = torch.empty(entry.get_shape(), dtype=dtype, device="meta")
    return tensors


def _read(file: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Map tensors, each by itself: what was read of one leaves memory before the next comes."""
    for name in names:
        with open_safetensors(file) as opened:
            yield name, opened.get_tensor(name)
