"""The model that is evaluated: a quantized model directory, a full-precision one, or a run's.

Everything that can be wrong with it is found before its weights are read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch

from duquant.compute_device import find_device
from duquant.config import Recipe
from duquant.evaluation.every_tensor import require_every_tensor
from duquant.evaluation.options import Dtype
from duquant.evaluation.silence import silence
from duquant.export.hugging_face import set_execution
from duquant.export.quantization_config import QUANT_METHOD
from duquant.json_files import read_json
from duquant.model.checkpoint import Checkpoint, find_model_directory
from duquant.model.content_digest import content_digest
from duquant.model.finite_weights import require_finite_weights
from duquant.model.tokenizer import (
    load_tokenizer,
    pad_with_known_token,
    require_matching_vocabulary,
)
from duquant.nn.execution import Backend
from duquant.plain_text import in_one_line
from duquant.run_description import CONTENT
from duquant.user_paths import user_path

PACKED = ".packed"
"""What names of packed weights end in."""


class QuantizationConfig(TypedDict, total=False):
    """How a model is quantized, by whichever method."""

    quant_method: str
    recipe: dict[str, Any]


class _SizeOfVocabulary(TypedDict):
    vocab_size: int


class ModelConfig(_SizeOfVocabulary, total=False):
    """What an evaluation reads in ``config.json`` itself."""

    max_position_embeddings: int | None
    quantization_config: QuantizationConfig | None
    dtype: str | None
    torch_dtype: str | None


@dataclass(frozen=True)
class ModelSource:
    """A model directory with its tokenizer, checked but not loaded.

    Attributes:
        name: what the user called it.
        directory: where it lies.
        tokenizer: its tokenizer.
        config: its ``config.json``.
    """

    name: str
    directory: Path
    tokenizer: Any
    config: ModelConfig

    @classmethod
    def find(cls, name: str, tokenizer: str | None = None) -> "ModelSource":
        """Look for a model and its tokenizer.

        Args:
            name: a directory, a hub id, or "quickstart".
            tokenizer: directory or hub id of another tokenizer.

        Raises:
            ValueError: if weights or tokenizer are missing, damaged, or do not belong together.
        """
        directory = find_model_directory(name)
        checkpoint = Checkpoint(directory)
        config = read_json(directory / "config.json", ModelConfig)
        _require_known_packing(checkpoint, config)
        source = directory if tokenizer is None else find_model_directory(tokenizer)
        loaded = load_tokenizer(source)
        require_matching_vocabulary(loaded, config["vocab_size"], source)
        pad_with_known_token(loaded, config["vocab_size"])
        return cls(name, directory, loaded, config)

    @property
    def recipe(self) -> dict[str, Any] | None:
        """Recipe of a quantized model."""
        quantization = self.config.get("quantization_config") or {}
        is_ours = quantization.get("quant_method") == QUANT_METHOD
        return quantization.get("recipe") if is_ours else None

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding."""
        return int(self.config["vocab_size"])

    @property
    def label(self) -> str:
        """``W4A4`` or ``full precision``, for tables."""
        if self.recipe is None:
            return "full precision"
        try:
            return Recipe.from_dict(self.recipe).bits_in_words
        except ValueError as error:
            raise ValueError(f"{self.directory / 'config.json'}: {error}") from error

    @property
    def max_length(self) -> int:
        """Positions of the model."""
        return self.config.get("max_position_embeddings") or 2048

    def description(self) -> dict[str, Any]:
        """What decides its numbers, for fingerprints: no paths."""
        checkpoint = Checkpoint(self.directory)
        return {
            "weights": checkpoint.digest(),
            CONTENT: content_digest(checkpoint),
            "vocabulary": len(self.tokenizer),
            "kind": self.label,
        }

    def load(self, dtype: Dtype, device: str, backend: Backend) -> Any:
        """Read the weights.

        Args:
            dtype: what the model computes in; "auto" is what it is stored in, and float32 on a CPU,
                where half precision is slow.
            device: where it goes; "auto" is the GPU if there is one, and all of them, layer by
                layer, if there are several.
            backend: arithmetic of a quantized model.

        Raises:
            ValueError: as :meth:`read`, or if there is no such device.
        """
        place = find_device(device)
        if dtype == "auto" and place.type == "cpu":
            dtype = "float32"
        spread = device == "auto" and torch.cuda.device_count() > 1
        model = self.read(dtype, "auto" if spread else {"": place})
        if self.recipe is not None:
            set_execution(model, backend)
        return model

    def read(self, dtype: Dtype, places: Any) -> Any:
        """Read the weights, every one of them, in this dtype ("auto": as config.json has it).

        Args:
            dtype: what the model computes in.
            places: the ``device_map`` of transformers.

        Raises:
            ValueError: if a value is not finite in that dtype, if the model's tensors and those
                stored are not the same, or if transformers cannot load it.
        """
        from transformers import AutoModelForCausalLM

        if self.recipe is None:  # a quantized model is checked while it is loaded
            require_finite_weights(Checkpoint(self.directory), self._dtype(dtype), "--dtype")
        try:
            with silence():
                model, found = AutoModelForCausalLM.from_pretrained(
                    self.directory,
                    dtype="auto" if dtype == "auto" else getattr(torch, dtype),
                    local_files_only=True,
                    use_safetensors=True,
                    device_map=places,
                    output_loading_info=True,
                )
        except Exception as error:
            raise ValueError(f"{self.directory} cannot be loaded: {in_one_line(error)}") from error
        require_every_tensor(self.directory, found, bool(model.config.tie_word_embeddings))
        return model.eval()

    def _dtype(self, dtype: Dtype) -> torch.dtype | None:
        """The dtype by name; none where tensors stay as they are stored."""
        name: str = dtype
        if dtype == "auto":
            name = self.config.get("dtype") or self.config.get("torch_dtype") or ""
        found = getattr(torch, name, None)
        return found if isinstance(found, torch.dtype) else None


def _require_known_packing(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Refuse packed weights whose configuration no longer says that duquant packed them."""
    method = (config.get("quantization_config") or {}).get("quant_method")
    packed = [name for name in checkpoint.files if name.endswith(PACKED)]
    if packed and method != QUANT_METHOD:
        raise ValueError(
            f"{checkpoint.directory / 'config.json'}: quantization_config.quant_method is "
            f"{method!r}, but the weights are packed by {QUANT_METHOD} ({min(packed)}): put "
            f"config.json back, or quantize again"
        )


def model_of_run(run: str) -> str:
    """Directory of the quantized model of a finished run.

    Args:
        run: the run directory, or the ``config.yaml`` in it.

    Raises:
        ValueError: if there is no run, or it is not finished.
    """
    path = user_path(run)
    directory = path.parent if path.suffix in (".yaml", ".yml") else path
    if not (directory / "run.json").is_file():
        raise ValueError(f"{directory} holds no run: give a run directory or its config.yaml")
    if not (directory / "model" / "config.json").is_file():
        raise ValueError(
            f"{directory} has no finished model yet: fit with --ckpt_path last finishes it"
        )
    return str(directory / "model")
