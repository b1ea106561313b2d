"""A stream's way through a block, a few samples at a time.

Where the stream lies on the host and a GPU computes, the next chunk is on its way to the GPU and
the last one's outputs are on their way back while a chunk is computed (:mod:`duquant.ops.uploads`,
:mod:`duquant.ops.downloads`). Chunks and numbers are the same wherever it lies.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from duquant.data.streams import Stream
from duquant.model.block_forward import TOKENS_AT_ONCE
from duquant.model.decoder import BlockContext
from duquant.ops.copy_stream import CopyStream
from duquant.ops.downloads import Downloads
from duquant.ops.finite import all_finite, require_finite
from duquant.ops.uploads import uploaded


def pass_through(
    block: nn.Module, stream: Stream, output: Stream, context: BlockContext, device: torch.device
) -> None:
    """Write a block's outputs of ``stream`` into ``output``.

    Args:
        block: maps ``(batch, tokens, hidden)`` to the same shape.
        stream: ``(samples, tokens, hidden)``.
        output: likewise; written chunk by chunk.
        context: what the block's forward needs beside hidden states.
        device: where the block lies.

    Raises:
        ValueError: if outputs are not finite; the host waits once for all chunks to know.
    """
    are_finite = []
    with Downloads(CopyStream.of(device)) as downloads:
        for chunk, x in zip(chunk_slices(stream), chunks_on(device, stream), strict=True):
            values = block(x, **context)
            are_finite.append(all_finite(values))
            downloads.put(output, chunk, values)
    if are_finite and not torch.stack(are_finite).all():
        for chunk in chunk_slices(output):
            require_finite(output[chunk], "values of the block's output", values.dtype)


def chunks_on(device: torch.device, stream: Stream) -> Iterator[Tensor]:
    """The chunks of a stream, on ``device``."""
    read = ([stream[chunk]] for chunk in chunk_slices(stream))
    return (values for (values,) in uploaded(read, device))


def chunk_slices(stream: Stream) -> Iterator[slice]:
    """Slices of samples ``(samples, tokens, …)`` that go through a block together."""
    size = max(1, TOKENS_AT_ONCE // stream.shape[1])
    return (slice(start, start + size) for start in range(0, len(stream), size))
