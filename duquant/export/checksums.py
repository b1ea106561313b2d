"""Checksums of a quantized model: of its recipe, of every block, and of what lies outside of them.

They are taken from the bytes that lie in the files, before anything is cast, placed or offloaded,
so they hold whatever dtype and devices a model is loaded to. They find accidents, not attacks.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from xxhash import xxh3_64, xxh3_64_hexdigest

from duquant.model.checkpoint import open_safetensors

RECIPE, OUTSIDE = "recipe", "embeddings, norm and head"
"""Names of parts; the others are ``block 0``, ``block 1``, …"""


def recipe_checksum(recipe: Mapping[str, Any]) -> str:
    """Checksum of a recipe as it stands in ``config.json``."""
    return xxh3_64_hexdigest(json.dumps(recipe, sort_keys=True).encode())


def part_of(name: str) -> str:
    """The part that a stored tensor belongs to; a model without a head has no ``model.``."""
    block = re.match(r"(?:model\.)?layers\.(\d+)\.", name)
    return f"block {block[1]}" if block else OUTSIDE


def part_checksums(names: Iterable[str], read: Callable[[str], Tensor]) -> dict[str, str]:
    """Checksum of every part: names, dtypes, shapes and bytes of its tensors.

    Args:
        names: the stored tensors' names.
        read: gives the tensor of a name, as it is stored; called from several threads.
    """
    ordered = sorted(names)

    def describe(name: str) -> str:
        tensor = read(name).detach().cpu().contiguous()
        raw = tensor.view(-1).view(torch.uint8).numpy().data
        return f"{name} {tensor.dtype} {tuple(tensor.shape)} {xxh3_64_hexdigest(raw)}\n"

    parts = {part_of(name): xxh3_64() for name in ordered}
    with ThreadPoolExecutor() as pool:
        for name, description in zip(ordered, pool.map(describe, ordered), strict=True):
            parts[part_of(name)].update(description.encode())
    return {part: state.hexdigest() for part, state in parts.items()}


def file_checksums(files: Iterable[Path]) -> dict[str, str]:
    """Checksum of every part of the model that lies in these files, which are mapped, not copied.

    Raises:
        ValueError: if a file is missing or damaged.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(open_safetensors(file)) for file in files]
        source = {name: file for file in opened for name in file.keys()}  # noqa: SIM118
        return part_checksums(source, lambda name: source[name].get_tensor(name))
