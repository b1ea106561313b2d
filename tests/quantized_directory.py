"""Tiny quantized models as directories: the shortest way from a family to something loadable."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from duquant.config import Recipe
from duquant.export.model_directory import ModelDirectory
from duquant.model.decoder import Decoder
from tests.block_by_block import quantize_decoder, run_blocks, small_recipe
from tests.tiny_models import token_ids, write_tiny_model


@dataclass(frozen=True)
class QuantizedDirectory:
    """A complete model directory and the decoder it was made from."""

    path: Path
    recipe: Recipe
    decoder: Decoder

    def load(self, **options: Any) -> Any:
        """The model as transformers loads it."""
        return AutoModelForCausalLM.from_pretrained(self.path, **options)

    def logits_block_by_block(self, input_ids: Tensor) -> Tensor:
        """What validation computes: the blocks as the directory reads them."""
        directory = ModelDirectory(self.path, self.recipe)
        blocks = [
            directory.read_block(index, self.decoder) for index in range(self.decoder.num_blocks)
        ]
        return run_blocks(self.decoder, input_ids, blocks)


def write_quantized(
    directory: Path,
    options: Mapping[str, Any],
    recipe: Recipe | None = None,
    dtype: torch.dtype = torch.float32,
) -> QuantizedDirectory:
    """Write a tiny model, quantize it block by block and complete its directory."""
    source = write_tiny_model(directory / "source", options)
    return quantize_source(source, directory / "model", recipe or fitting_recipe(options), dtype)


def quantize_source(
    source: Path, target: Path, recipe: Recipe, dtype: torch.dtype = torch.float32
) -> QuantizedDirectory:
    """Quantize a model directory into another one."""
    decoder = Decoder(str(source), dtype)
    written = ModelDirectory(target, recipe)
    for index, block in enumerate(quantize_decoder(decoder, recipe, token_ids(seed=1))):
        written.write_block(index, block)
    written.complete(decoder)
    return QuantizedDirectory(target, recipe, decoder)


def fitting_recipe(options: Mapping[str, Any]) -> Recipe:
    """W4A4 with blocks that divide the widths of a family."""
    return small_recipe(block_size=8 if options.get("head_dim") == 24 else 16)


@torch.no_grad()
def logits(model: Any, input_ids: Tensor, **options: Any) -> Tensor:
    """Logits of a loaded model."""
    result: Tensor = model(input_ids, **options).logits
    return result
