"""The model directory: a quantized model as it grows, block by block, and when it is complete.

config.json                        the model's own, with quantization_config (recipe, version)
model-block-00000.safetensors …    one per block, written the moment the block is finished; the
                                   checksum of its tensors is the file's metadata
model-outside.safetensors          embeddings, final norm, head: as they were
model.safetensors.index.json       which tensor is where; its presence means the model is complete
logits.json                        log-probabilities behind 16 prompts, for hosts to compare
README.md                          model card: recipe, perplexities, sizes, how to load
tokenizer files, generation_config.json
"""

import copy
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from duquant.atomic_files import write_durably, write_json, write_tensors
from duquant.config import Recipe
from duquant.export.checksums import RECIPE, file_checksums, part_checksums, recipe_checksum
from duquant.export.config_record import config_record
from duquant.export.first_tokens import write_first_tokens
from duquant.export.model_card import write_model_card
from duquant.export.packed_block import pack_block, unpack_block
from duquant.export.quantization_config import DuquantConfig
from duquant.export.stored_values import require_sense
from duquant.json_files import read_json
from duquant.model.checkpoint import INDEX, open_safetensors
from duquant.model.decoder import Decoder
from duquant.model.file_tensor import lay_out, open_tensors
from duquant.model.notice import NOTICE, NOTICE_FIELD
from duquant.model.surgery import QuantizedBlock
from duquant.ops.downloads import downloaded
from duquant.write_behind import WriteBehind

COMPANIONS = ("generation_config.json", "tokenizer*", "special_tokens_map.json", "*.jinja",
              "vocab.json", "merges.txt", "added_tokens.json")  # fmt: skip
OUTSIDE = "model-outside.safetensors"


class ModelDirectory:
    """Writes and reads the blocks of one quantized model.

    Args:
        path: the directory.
        recipe: how its blocks are quantized.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.recipe = recipe

    @property
    def is_complete(self) -> bool:
        """Whether every block and the rest of the model are there."""
        return (self.path / INDEX).is_file()

    def block_file(self, index: int) -> Path:
        """File of block ``index``."""
        return self.path / f"model-block-{index:05d}.safetensors"

    def write_block(self, index: int, quantized: QuantizedBlock) -> None:
        """Store a finished block (not yet frozen).

        Raises:
            ValueError: if a weight is not finite, naming block and linear.
        """
        self.write_packed(index, downloaded(self.pack(index, quantized))())

    def write_block_behind(
        self, index: int, quantized: QuantizedBlock, writer: WriteBehind
    ) -> None:
        """The same, by a thread that is given a copy.

        Raises:
            ValueError: if a weight is not finite, naming block and linear.
        """
        tensors = {name: x.clone() for name, x in self.pack(index, quantized).items()}
        fetch = downloaded(tensors)
        writer.submit(lambda: self.write_packed(index, fetch()))

    def pack(self, index: int, quantized: QuantizedBlock) -> dict[str, Tensor]:
        """What :meth:`write_packed` stores of a finished block, where it lies.

        Some are the block's own tensors.

        Raises:
            ValueError: if a weight is not finite, naming block and linear.
        """
        try:
            return pack_block(quantized)
        except ValueError as error:
            raise ValueError(f"block {index}: {error}") from error

    def write_packed(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Store the tensors of block ``index``, which lie on the CPU."""
        named = {f"model.layers.{index}.{name}": tensor for name, tensor in tensors.items()}
        write_tensors(self.block_file(index), named, part_checksums(named, named.__getitem__))

    def replace_tensors(self, index: int, values: Mapping[str, Tensor]) -> None:
        """Store a block once more, with other values of some tensors, in the dtypes they have."""
        prefix = f"model.layers.{index}."
        tensors = _read_all(self.block_file(index), prefix, torch.device("cpu"))
        for name, value in values.items():
            tensors[name] = value.detach().cpu().to(tensors[name].dtype)
        self.write_packed(index, tensors)

    def read_block(self, index: int, decoder: Decoder) -> nn.Module:
        """Load block ``index`` as a runnable module on the CPU.

        Raises:
            ValueError: if its file is missing, damaged or not of this recipe, naming it.
        """
        return self._read_block(index, decoder, torch.device("cpu"))

    def require_block(self, index: int, decoder: Decoder) -> None:
        """Check that :meth:`read_block` will succeed: every name, shape and byte, nothing unpacked.

        Raises:
            ValueError: as :meth:`read_block`.
        """
        self._read_block(index, decoder, torch.device("meta"))

    def _read_block(self, index: int, decoder: Decoder, device: torch.device) -> nn.Module:
        file = self.block_file(index)
        tensors = _read_all(file, f"model.layers.{index}.", device)
        try:
            fresh = copy.deepcopy(decoder.meta_block(index))
            block = unpack_block(fresh, tensors, self.recipe, decoder.dtype)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        if file_checksums([file]) != self._checksum(index):
            raise ValueError(f"{file} is damaged: its tensors are not those that were stored")
        if device.type != "meta":
            require_sense(tensors, file, self.recipe)
        return block

    def complete(self, decoder: Decoder, made_from: str | None = None) -> None:
        """Add everything that is not a block, the index last.

        Args:
            decoder: the model that was quantized.
            made_from: its name for the model card, if that is not where the decoder was read from.
        """
        recipe, outside = self.recipe.to_dict(), self.path / OUTSIDE
        write_durably(outside, partial(_copy_outside, decoder))
        checksums = {RECIPE: recipe_checksum(recipe), **file_checksums([outside])}
        for block in range(decoder.num_blocks):
            checksums |= self._checksum(block)
        checksums |= write_first_tokens(self.path, outside, decoder, self.read_block)
        index = self._index(decoder.num_blocks)
        source = decoder.directory / "config.json"
        config = read_json(source, dict[str, Any])
        record = config_record(decoder.config, source)
        quantization = DuquantConfig(recipe, checksums=checksums, model_config=record)
        config["quantization_config"] = quantization.to_dict()
        config[NOTICE_FIELD] = NOTICE
        config["tie_word_embeddings"] = record["tie_word_embeddings"]
        config["dtype"] = str(decoder.dtype).removeprefix("torch.")
        write_json(self.path / "config.json", config)
        for pattern in COMPANIONS:
            for file in sorted(decoder.directory.glob(pattern)):
                write_durably(self.path / file.name, partial(shutil.copyfile, file))
        write_json(self.path / INDEX, index)
        name = decoder.pretrained if made_from is None else made_from
        write_model_card(self.path, name, self.recipe)

    def _checksum(self, index: int) -> dict[str, str]:
        part = f"block {index}"
        with open_safetensors(self.block_file(index)) as opened:
            metadata: dict[str, str] = opened.metadata() or {}
        if metadata.keys() != {"format", part} or metadata["format"] != "pt":
            raise ValueError(f"{self.block_file(index)} was not written by duquant: no checksum")
        return {part: metadata[part]}

    def _index(self, num_blocks: int) -> dict[str, dict[str, Any]]:
        files = [self.path / OUTSIDE, *(self.block_file(index) for index in range(num_blocks))]
        weight_map = {}
        for file in files:
            with open_safetensors(file) as opened:
                weight_map.update(dict.fromkeys(opened.keys(), file.name))
        size = sum(file.stat().st_size for file in files)
        return {"metadata": {"total_size": size}, "weight_map": weight_map}


def _copy_outside(decoder: Decoder, path: Path) -> None:
    """Write what belongs to no block, one tensor in memory at a time."""
    lay_out(path, decoder.outside_shapes(), decoder.dtype)
    for name, stored in open_tensors(path).items():
        stored[:] = decoder.outside_tensor(name)


def _read_all(file: Path, prefix: str, device: torch.device) -> dict[str, Tensor]:
    with open_safetensors(file) as opened:
        names: list[str] = list(opened.keys())
        foreign = [name for name in names if not name.startswith(prefix)]
        if foreign:
            raise ValueError(f"{file} holds {foreign[0]}, which is not of {prefix[:-1]}")
        tensors: dict[str, torch.Tensor] = {
            n.removeprefix(prefix): opened.get_tensor(n).to(device) for n in names
        }
    return tensors
