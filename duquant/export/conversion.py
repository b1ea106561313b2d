"""From a quantized model directory to another layout, one block in memory at a time.

What is read is checked as it is when a model is loaded. ``model.safetensors.index.json`` is written
last: a directory that has it is complete.
"""

import copy
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from duquant.atomic_files import write_durably, write_json, write_tensors, write_text
from duquant.config import Recipe
from duquant.export.checksums import RECIPE, file_checksums, part_checksums, recipe_checksum
from duquant.export.config_record import config_record, require_recorded
from duquant.export.first_tokens import LOGITS, add_first_tokens, first_tokens_checksum
from duquant.export.hugging_face import register, set_execution
from duquant.export.model_directory import COMPANIONS, OUTSIDE
from duquant.export.packed_block import unpack_block
from duquant.export.quantization_config import QUANT_METHOD, DuquantConfig
from duquant.export.stored_values import require_sense
from duquant.export.targets.exporter import Exporter
from duquant.json_files import read_json
from duquant.model.checkpoint import INDEX, Checkpoint
from duquant.model.notice import NOTICE, NOTICE_FIELD, drop_notice
from duquant.model.skeleton import build_skeleton
from duquant.nn.attention import register_attention
from duquant.plain_text import in_markdown
from duquant.run_lock import LOCK_FILE, RunLock


class QuantizedSource:
    """A complete quantized model directory, read block by block.

    Args:
        directory: the model directory.

    Raises:
        ValueError: if it is not one of ours, or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = read_json(directory / "config.json", dict[str, Any])
        quantization = self.config.get("quantization_config")
        if not isinstance(quantization, dict) or quantization.get("quant_method") != QUANT_METHOD:
            raise ValueError(f"{directory} holds no model that was quantized by duquant")
        self.quantization = DuquantConfig(**quantization)
        self.recipe = Recipe.from_dict(self.quantization.recipe)
        self.dtype: torch.dtype = getattr(torch, str(self.config.get("dtype", "float32")))
        self.checkpoint = Checkpoint(directory)
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        drop_notice(config)  # before the record is compared
        del config.quantization_config
        self.record = self._configuration(config)
        register_attention()
        self._skeleton = build_skeleton(config, self.dtype, str(directory))
        self._require_unaltered()

    @property
    def num_blocks(self) -> int:
        """Decoder blocks."""
        return len(self._skeleton.model.layers)

    def block(self, index: int) -> torch.nn.Module:
        """A finished block on the CPU."""
        prefix = f"model.layers.{index}."
        names = [name for name in self.checkpoint.files if name.startswith(prefix)]
        tensors = dict(self.checkpoint.tensors(names))
        require_sense(tensors, self.directory, self.recipe)
        fresh = copy.deepcopy(self._skeleton.model.layers[index])
        named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        return unpack_block(fresh, named, self.recipe, self.dtype)

    def plain_config(self) -> dict[str, Any]:
        """``config.json`` without what the quantization added to it."""
        added = ("quantization_config", NOTICE_FIELD)
        return {name: value for name, value in self.config.items() if name not in added}

    def outside(self) -> Iterator[tuple[str, Tensor]]:
        """Embeddings, final norm and head."""
        names = [n for n in self.checkpoint.files if not n.startswith("model.layers.")]
        return self.checkpoint.tensors(names)

    def _configuration(self, config: Any) -> dict[str, Any]:
        """The configuration it was quantized with, as today's releases record it."""
        recorded, file = self.quantization.model_config, self.directory / "config.json"
        if recorded is None:
            return config_record(config, file)
        require_recorded(recorded, config, file)
        return recorded

    def _require_unaltered(self) -> None:
        for part, checksum in file_checksums(sorted(set(self.checkpoint.files.values()))).items():
            if checksum != self.quantization.checksums.get(part):
                raise ValueError(f"{self.directory}: {part} is damaged or altered")


@torch.no_grad()
def export_model(
    source: QuantizedSource,
    target: Path,
    exporter: Exporter,
    on_block: Callable[[int, int], None] | None = None,
) -> None:
    """Write a quantized model in another layout.

    Args:
        source: the model.
        target: the directory to write; it must not exist, be empty, or be of an export that was
            interrupted.
        exporter: the layout.
        on_block: told the index of every finished block and their number.

    Raises:
        ValueError: if the layout cannot express the model, or the directory holds something else.
    """
    config = exporter.model_config(source.recipe, source.plain_config())
    begun = {f"model-block-{index:05d}.safetensors" for index in range(source.num_blocks)}
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; choose another --output_dir")
    if target.is_dir() and any(f.name.strip(".") not in begun for f in _whole_files(target)):
        raise ValueError(f"{target} is not an empty directory; choose another --output_dir")
    with RunLock(target) as lock:
        lock.acquire()
        _write_parts(source, target, exporter, config, on_block)


def _write_parts(
    source: QuantizedSource,
    target: Path,
    exporter: Exporter,
    config: dict[str, Any],
    on_block: Callable[[int, int], None] | None,
) -> None:
    checksums = {RECIPE: recipe_checksum(source.recipe.to_dict())}
    weight_map: dict[str, str] = {}
    parts = (
        (f"model-block-{index:05d}.safetensors", partial(_block_tensors, source, exporter, index))
        for index in range(source.num_blocks)
    )
    for index, (file, make) in enumerate(parts):
        _write_part(target / file, make(), exporter, weight_map, checksums)
        if on_block is not None:
            on_block(index, source.num_blocks)
    _write_part(target / OUTSIDE, dict(source.outside()), exporter, weight_map, checksums)
    _complete(source, target, exporter, config, weight_map, checksums)


def _whole_files(directory: Path) -> list[Path]:
    files = (file for file in directory.iterdir() if file.name != LOCK_FILE)
    return [file for file in files if not file.name.endswith(".partial")]


def _block_tensors(source: QuantizedSource, exporter: Exporter, index: int) -> dict[str, Tensor]:
    tensors = exporter.tensors(source.block(index), source.recipe)
    return {f"model.layers.{index}.{name}": tensor for name, tensor in tensors.items()}


def _write_part(
    file: Path,
    tensors: dict[str, Tensor],
    exporter: Exporter,
    weight_map: dict[str, str],
    checksums: dict[str, str],
) -> None:
    if exporter.dtype is not None:
        tensors = {name: tensor.to(exporter.dtype) for name, tensor in tensors.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    part = part_checksums(tensors, tensors.__getitem__)
    write_tensors(file, tensors, part)
    checksums |= part
    weight_map.update(dict.fromkeys(tensors, file.name))


def _complete(
    source: QuantizedSource,
    target: Path,
    exporter: Exporter,
    config: dict[str, Any],
    weight_map: dict[str, str],
    checksums: dict[str, str],
) -> None:
    config = dict(config)
    quantization = exporter.quantization_config(source.recipe, checksums, source.record)
    if quantization is not None:
        config["quantization_config"] = quantization
        if quantization["quant_method"] == QUANT_METHOD:
            config[NOTICE_FIELD] = NOTICE
            quantization["checksums"] |= _first_tokens(source.directory, target)
    if exporter.dtype is not None:
        config["dtype"] = str(exporter.dtype).removeprefix("torch.")
    write_json(target / "config.json", config)
    for pattern in COMPANIONS:
        _copy(source.directory, target, pattern)
    made = f"{source.recipe.bits_in_words} by DuQuant, written as `{exporter.name}`"
    write_text(target / "README.md", f"# {in_markdown(made)}\n\n{exporter.about}\n")
    size = sum((target / name).stat().st_size for name in set(weight_map.values()))
    write_json(target / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(weight_map)})


def _first_tokens(source: Path, target: Path) -> dict[str, str]:
    """Take over the first tokens of a model, or compute them where an earlier release did not."""
    if (source / LOGITS).is_file():
        _copy(source, target, LOGITS)
        return first_tokens_checksum(target)
    register()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    set_execution(model, "reference")
    return add_first_tokens(target, model.eval())


def _copy(source: Path, target: Path, pattern: str) -> None:
    for file in sorted(source.glob(pattern)):
        write_durably(target / file.name, partial(shutil.copyfile, file))
