"""Random checkpoints of any size, written block by block: a shape to measure costs with.

Nothing is ever whole in memory, so a model larger than memory can be written, too. The tokenizer is
the embedded model's, with tokens that no text reaches for all further rows of the embeddings.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from duquant.model.checkpoint import INDEX, WEIGHTS
from duquant.quickstart import MODEL_DIRECTORY


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaMA-like model.

    Attributes:
        blocks: decoder blocks.
        hidden: channels of the residual stream.
        intermediate: channels inside of the MLP.
        heads: attention heads, for queries, keys and values alike.
        vocabulary: rows of the embeddings.
        tied: whether the head is the embeddings.
        dtype: of the stored weights.
    """

    blocks: int
    hidden: int = 512
    intermediate: int = 1408
    heads: int = 8
    vocabulary: int = 1024
    tied: bool = False
    dtype: torch.dtype = torch.bfloat16

    def with_blocks(self, blocks: int) -> "Shape":
        """The same with another number of blocks."""
        return replace(self, blocks=blocks)


LLAMA_2_7B = Shape(32, hidden=4096, intermediate=11008, heads=32, vocabulary=32000)


def write_random_checkpoint(directory: Path, shape: Shape, *, sharded: bool = True) -> Path:
    """Write a model directory: one file per block and one for the rest, or a single file."""
    directory.mkdir(parents=True, exist_ok=True)
    LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        tie_word_embeddings=shape.tied,
        dtype=shape.dtype,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(directory)
    _write_tokenizer(directory, shape.vocabulary)
    generator = torch.Generator().manual_seed(0)
    parts = _parts(shape, generator)
    if not sharded:
        save_file({k: v for part in parts for k, v in part.items()}, directory / WEIGHTS)
        return directory
    names, size = {}, 0
    for number, part in enumerate(parts):
        file = f"model-{number:05d}.safetensors"
        save_file(part, directory / file, metadata={"format": "pt"})
        names |= dict.fromkeys(part, file)
        size += sum(tensor.nbytes for tensor in part.values())
    index = {"metadata": {"total_size": size}, "weight_map": names}
    (directory / INDEX).write_text(json.dumps(index))
    return directory


def _write_tokenizer(directory: Path, vocabulary: int) -> None:
    for file in MODEL_DIRECTORY.glob("tokenizer*"):
        shutil.copy(file, directory)
    file = directory / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokens = tokenizer["model"]["vocab"]
    tokens |= {f"<unused {index}>": index for index in range(len(tokens), vocabulary)}
    file.write_text(json.dumps(tokenizer), encoding="utf-8")


def _parts(shape: Shape, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """Everything outside of blocks, then each block."""

    def matrix(rows: int, columns: int) -> Tensor:
        values = torch.empty(rows, columns, dtype=shape.dtype)
        return values.normal_(0, columns**-0.5, generator=generator)

    def norm() -> Tensor:
        weight = torch.ones(shape.hidden, dtype=shape.dtype)
        weight[::97] = 8  # outlier channels, as trained models have them
        return weight

    hidden, intermediate = shape.hidden, shape.intermediate
    outside = {"model.embed_tokens.weight": matrix(shape.vocabulary, hidden)}
    outside["model.norm.weight"] = norm()
    if not shape.tied:
        outside["lm_head.weight"] = matrix(shape.vocabulary, hidden)
    yield outside
    for index in range(shape.blocks):
        prefix = f"model.layers.{index}"
        part = {f"{prefix}.self_attn.{name}_proj.weight": matrix(hidden, hidden) for name in "qkvo"}
        for name in ("gate", "up"):
            part[f"{prefix}.mlp.{name}_proj.weight"] = matrix(intermediate, hidden)
        part[f"{prefix}.mlp.down_proj.weight"] = matrix(hidden, intermediate)
        part[f"{prefix}.input_layernorm.weight"] = norm()
        part[f"{prefix}.post_attention_layernorm.weight"] = norm()
        yield part
