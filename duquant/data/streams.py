"""Activation streams: what flows from one block to the next while a model is calibrated.

Three tensors meet every block boundary:

* the **full-precision stream**, the hidden states of the original model (targets come from it);
* the **quantized stream**, the hidden states of the model quantized so far (LWC trains on it);
* the **calibration mean**, one sequence, the mean over samples, on which rotations are searched. It
  leaves a block with the weights' initial clip factors, so it does not depend on training.

A block turns the streams before it into a *draft* of those behind it, chunk by chunk. Whether they
lie in the memory of the device that computes, in the host's or on disk changes no number
(:mod:`duquant.preflight.placement`, :mod:`duquant.data.stream_files`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from duquant.config import Recipe
from duquant.model.batch import BlockBatch
from duquant.model.file_tensor import FileTensor

Stream = Tensor | FileTensor
"""``(samples, tokens, hidden)``, in memory or on disk; read and written by slices of samples."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class StreamSizes:
    """How large the streams of a run are, and how many it has.

    Attributes:
        samples: calibration windows.
        tokens: tokens of a window.
        hidden: channels.
        dtype: of the hidden states.
        has_quantized: whether something trains on the quantized stream (LWC).
        has_augmented: whether the augmented loss needs one more target.
        trains_on_full_precision: whether what enters the full-precision block stays until the
            quantized block is finished, because training reads it.
    """

    samples: int
    tokens: int
    hidden: int
    dtype: torch.dtype
    has_quantized: bool
    has_augmented: bool = False
    trains_on_full_precision: bool = False

    @classmethod
    def of(
        cls, recipe: Recipe, samples: int, tokens: int, hidden: int, dtype: torch.dtype
    ) -> "StreamSizes":
        """What a recipe needs."""
        augmented = recipe.has_lwc and recipe.lwc.augmented_loss
        kept = recipe.has_lwc and recipe.training.inputs == "full_precision"
        return cls(samples, tokens, hidden, dtype, recipe.needs_quantized_stream, augmented, kept)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one stream."""
        return self.samples, self.tokens, self.hidden

    @property
    def stream_bytes(self) -> int:
        """Bytes of one stream."""
        return self.samples * self.sample_bytes

    @property
    def sample_bytes(self) -> int:
        """Bytes of one window, and of the calibration mean."""
        return self.tokens * self.hidden * self.dtype.itemsize

    @property
    def boundary_bytes(self) -> int:
        """Bytes of everything that enters a block."""
        return (2 if self.has_quantized else 1) * self.stream_bytes + self.sample_bytes

    @property
    def num_at_once(self) -> int:
        """Streams that are needed at the same time: a block's inputs and its outputs."""
        return sum(
            [3 if self.has_quantized else 2, self.has_augmented, self.trains_on_full_precision]
        )

    @property
    def bytes_at_once(self) -> int:
        """Memory that streams take if they are held there."""
        return self.num_at_once * self.stream_bytes


@dataclass
class Streams:
    """Hidden states entering one block.

    Attributes:
        full_precision: ``(samples, tokens, hidden)``.
        quantized: likewise; the same object as ``full_precision`` before block 0, and empty where
            nothing reads it (without LWC, GPTQ or calibrated peaks).
        calibration_mean: ``(1, tokens, hidden)``, on the CPU.
        augmented: in a draft, room for the augmented loss's target, which no boundary needs.
    """

    full_precision: Stream
    quantized: Stream
    calibration_mean: Tensor
    augmented: Stream | None = None

    @classmethod
    def draft(
        cls, sizes: StreamSizes, device: torch.device = CPU, *, at_start: bool = False
    ) -> "Streams":
        """Streams in memory, to be filled; ``at_start`` there is one, as all begin as embeddings.

        The host's memory is taken as they are filled.
        """
        full_precision = torch.empty(sizes.shape, dtype=sizes.dtype, device=device)
        quantized = full_precision if sizes.has_quantized else full_precision[:0]
        mean = torch.empty(0, *sizes.shape[1:], dtype=sizes.dtype, device="cpu")
        if at_start:
            return cls(full_precision, quantized, mean)
        return cls(
            full_precision,
            torch.empty_like(quantized),
            mean,
            torch.empty_like(full_precision) if sizes.has_augmented else None,
        )


class BlockSamples(Dataset[BlockBatch]):
    """Training samples of one turn.

    Args:
        quantized_input: ``(samples, tokens, hidden)``; of the whole model's turn the token ids,
            ``(samples, tokens)``.
        target: ``(samples, tokens, hidden)``.
        augmented_target: likewise, or ``None``.
    """

    def __init__(
        self, quantized_input: Stream, target: Stream, augmented_target: Stream | None = None
    ) -> None:
        self.quantized_input = quantized_input
        self.target = target
        self.augmented_target = augmented_target

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.quantized_input)

    def __getitem__(self, index: int) -> BlockBatch:
        """Sample ``index``."""
        return BlockBatch(*(part[0] for part in self.batch([index])))

    def __getitems__(self, indices: Sequence[int]) -> BlockBatch:
        """Samples ``indices`` as a batch, which is how a ``DataLoader`` asks for one.

        What lies in the host's memory or on disk is copied: a batch then begins at an aligned
        address, wherever its samples lie, so that no kernel adds up in another order.
        """
        batch = self.batch(indices)
        return BlockBatch(*(part.clone() if part.device == CPU else part for part in batch))

    def batch(self, indices: Sequence[int]) -> BlockBatch:
        """Samples ``indices``, read at once; consecutive ones are a view of where they lie."""
        inputs, target = _rows(self.quantized_input, indices), _rows(self.target, indices)
        if self.augmented_target is not None:
            return BlockBatch(inputs, target, _rows(self.augmented_target, indices))
        empty = torch.zeros(len(indices), 0, dtype=torch.float32, device=target.device)
        return BlockBatch(inputs, target, empty)


def _rows(stream: Stream, indices: Sequence[int]) -> Tensor:
    first, count = indices[0], len(indices)
    if list(indices) == list(range(first, first + count)):
        return stream[first : first + count]
    if isinstance(stream, FileTensor):
        return torch.stack([stream[index] for index in indices])
    return stream.index_select(0, torch.tensor(indices, device=stream.device))
