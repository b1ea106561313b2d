"""Full-precision perplexities that earlier runs measured, kept for later ones.

Every calibration of a model is compared with the model itself, on the same windows, and that part
of the measurement gives the same number every time. It is kept in the user's cache directory, one
JSON file per model, text and protocol::

    ~/.cache/duquant/perplexity/3f2a91bc….json        (or $XDG_CACHE_HOME/duquant/perplexity)

A kept number stands for a measurement only if that would give the same number to the last bit. So
everything that decides it is kept beside it: the content of configuration and weights, the tokens
of all windows, how windows are scored and share batches and processes, the dtype, and, because sums
of floats depend on their order, this code, the libraries, the threads and the processor or GPU.
What differs, is damaged or cannot be read is measured anew.
"""

import functools
import hashlib
import json
import math
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import torch

from duquant.atomic_files import write_json
from duquant.checksum import CHECKSUM, check_values, with_checksum
from duquant.data.datamodule import CalibrationDataModule
from duquant.evaluation.perplexity_part import corpus_digest
from duquant.json_files import read_json
from duquant.model.content_digest import content_digest
from duquant.model.decoder import Decoder
from duquant.ops.kernels.library_cache import cache_directory
from duquant.ops.precision import product_settings

PACKAGE = Path(__file__).parents[1]
LIBRARY_SETTINGS = ("ATEN_", "CUBLAS_", "DNNL_", "MKL_", "NVIDIA_", "ONEDNN_")
"""What names of environment variables begin with that choose how libraries compute."""
PROCESSOR_LINES = ("CPU implementer", "CPU part", "Features", "flags", "model name", "vendor_id")


class Entry(TypedDict):
    """What a file holds."""

    settings: dict[str, Any]
    weights: str
    perplexity: float


class KnownPerplexity:
    """Full-precision perplexity of one model on one corpus.

    Args:
        decoder: the model.
        data: knows the windows.
        corpus: name of the corpus.
        device: where it would be measured.
    """

    def __init__(
        self, decoder: Decoder, data: CalibrationDataModule, corpus: str, device: torch.device
    ) -> None:
        self.checkpoint = decoder.checkpoint
        self.settings = {
            "model": decoder.checkpoint.digest(),
            "dtype": str(decoder.dtype),
            **corpus_digest(data, corpus),
            "chunk": data.validation_chunk,
            "processes": data.processes.count,
            "code": _code_digest(),
            **describe_machine(device),
        }

    def find(self) -> float | None:
        """The number, if an earlier run kept it and nothing that decides it has changed."""
        try:
            file = self._file()
            kept = read_json(file, Entry)
            values = check_values(kept, file) if CHECKSUM in kept else {}
        except (OSError, RuntimeError, ValueError):  # RuntimeError: there is no home directory
            return None
        known = values.get("perplexity", math.nan)
        is_number = math.isfinite(known) and known > 0
        is_same = values.get("settings") == self.settings
        if not (is_number and is_same and values["weights"] == content_digest(self.checkpoint)):
            return None
        return float(known)

    def keep(self, perplexity: float) -> None:
        """Keep a number that was measured just now; where nothing can be written, do without."""
        entry = {
            "settings": self.settings,
            "weights": content_digest(self.checkpoint),
            "perplexity": perplexity,
        }
        try:
            write_json(self._file(), with_checksum(entry))
        except (OSError, RuntimeError):
            return

    def _file(self) -> Path:
        text = json.dumps(self.settings, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return cache_directory() / "perplexity" / f"{name}.json"


@functools.cache
def _code_digest() -> str:
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the last bits of a sum of floats depend on, besides the code."""
    is_gpu = device.type == "cuda"
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
        "device": torch.cuda.get_device_name(device) if is_gpu else device.type,
        "processor": _processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "matmul_precision": product_settings(),
        "libraries": {
            name: value for name, value in os.environ.items() if name.startswith(LIBRARY_SETTINGS)
        },
    }


@functools.cache
def _processor() -> str:
    """Name and abilities of the processor: libraries choose their loops by them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found = sorted({line for line in lines if line.startswith(PROCESSOR_LINES)})
    except OSError:
        found = [platform.machine(), platform.processor()]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]
