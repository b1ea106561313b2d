"""A job: what of a model, a recipe and its texts decides what a run costs."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from duquant.config import Recipe
from duquant.data.streams import StreamSizes
from duquant.model.block_forward import TOKENS_AT_ONCE
from duquant.model.decoder import Decoder
from duquant.model.structure import linear_shapes


@dataclass(frozen=True)
class Job:
    """One calibration and its measurement.

    Attributes:
        decoder: the model.
        recipe: how it is quantized.
        streams: sizes of the activations between blocks, of one process.
        streams_in_memory: whether they are held in the host's memory.
        streams_on_gpu: whether they are held in the GPU's instead.
        batch_size: samples of an LWC step, in one process.
        windows: validation windows of every corpus, in one process.
        validation_chunk: windows that are measured together.
        has_plain: whether plain rounding is measured beside full precision and the result.
        has_full_precision: whether full precision is; not where it is known.
        processes: how many share the run directory.
        on_gpu: whether blocks are computed in memory that is not the host's.
        gradient_checkpointing: whether distillation keeps the activations of one block at a time.
        holds_scores: whether training holds the matrices of attention, as it does on GPUs where
            that is plain products (:func:`duquant.preflight.placement.holds_scores`).
    """

    decoder: Decoder
    recipe: Recipe
    streams: StreamSizes
    streams_in_memory: bool
    batch_size: int
    windows: tuple[int, ...]
    validation_chunk: int
    has_plain: bool = False
    has_full_precision: bool = True
    processes: int = 1
    on_gpu: bool = False
    streams_on_gpu: bool = False
    gradient_checkpointing: bool = True
    holds_scores: bool = False

    @property
    def item(self) -> int:
        """Bytes of one number in the model's dtype."""
        return self.decoder.dtype.itemsize

    @property
    def num_variants(self) -> int:
        """Variants of the model whose perplexity is measured."""
        return 1 + self.has_plain + self.has_full_precision

    @property
    def num_chunks(self) -> int:
        """How often the whole model is read to measure perplexities."""
        return sum(-(-count // self.validation_chunk) for count in self.windows)

    @property
    def distillation_batch(self) -> int:
        """Samples of a step of the whole model, in one process."""
        return max(1, self.recipe.distillation.batch_size // self.processes)

    @property
    def tokens_at_once(self) -> int:
        """Tokens that go through a block together."""
        windows = max(1, TOKENS_AT_ONCE // self.streams.tokens)
        return min(windows, self.streams.samples) * self.streams.tokens

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """``(out, in)`` of a block's linears."""
        return linear_shapes(self.decoder.meta_block())

    @property
    def block_weights(self) -> int:
        """Weights of a block's linears."""
        return sum(rows * columns for rows, columns in self.linears.values())

    @property
    def largest_linear(self) -> int:
        """Weights of the largest of them."""
        return max(rows * columns for rows, columns in self.linears.values())

    @property
    def attention_scores(self) -> int:
        """Numbers in one sample's matrices of attention, of a block."""
        return int(self.decoder.config.num_attention_heads) * self.streams.tokens**2

    @property
    def embeddings(self) -> int:
        """Numbers in the table of embeddings, and in the head."""
        return int(self.decoder.config.vocab_size) * self.streams.hidden

    @property
    def outside(self) -> int:
        """Numbers stored outside of the blocks; a tied head is stored once."""
        shapes = self.decoder.outside_shapes().values()
        return sum(torch.Size(shape).numel() for shape in shapes)

    @property
    def blocks(self) -> list[nn.Module]:
        """Every block, without weights."""
        return [self.decoder.meta_block(index) for index in range(self.decoder.num_blocks)]
