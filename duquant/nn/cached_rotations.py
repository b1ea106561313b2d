"""The rotations of cached tokens: cos and sin as RoPE made them, each once, by number.

A position says too little about a token that is cached: scaled RoPE changes its frequencies as a
sequence grows, padding and a caller's own ``position_ids`` shift positions. cos and sin themselves
are what K was rotated by. All layers of a model rotate a token alike, so they share one table, and
a layer keeps the row's number beside the token's bytes, where it is cropped, repeated and reordered
with them.
"""

import torch
from torch import Tensor

from duquant.nn.attention_bias import PositionEmbeddings

NUMBER_BYTES = torch.int32.itemsize


class CachedRotations:
    """A table of cos and sin, a row per token."""

    def __init__(self) -> None:
        self._rows: PositionEmbeddings | None = None
        self._latest: Tensor | None = None
        self._numbers = torch.zeros(0, 0, dtype=torch.int32, device="cpu")

    def add(self, positions: PositionEmbeddings) -> Tensor:
        """Numbers of new tokens' rotations, int32 ``(batch or 1, tokens)``.

        The layers of one forward pass share the same tensors, which are added once.
        """
        cos, sin = positions
        if cos is self._latest:
            return self._numbers
        new = (cos.flatten(0, 1), sin.flatten(0, 1))
        start = 0
        if self._rows is not None:
            start = len(self._rows[0])
            (old_cos, old_sin), (new_cos, new_sin) = self._rows, new
            new = (
                torch.cat([old_cos, new_cos.to(old_cos.device)]),
                torch.cat([old_sin, new_sin.to(old_sin.device)]),
            )
        self._rows, self._latest = new, cos
        end = len(new[0])
        numbers = torch.arange(start, end, dtype=torch.int32, device=cos.device)
        self._numbers = numbers.view(cos.shape[:2])
        return self._numbers

    def at(self, numbers: Tensor) -> PositionEmbeddings:
        """Rows of the table, ``(batch, tokens, channels)``, of tokens ``(batch, tokens)``."""
        assert self._rows is not None
        cos, sin = self._rows
        return cos[numbers.to(cos.device)], sin[numbers.to(sin.device)]

    def num_bytes(self) -> int:
        """Bytes of the table."""
        return 0 if self._rows is None else sum(rows.nbytes for rows in self._rows)


def join_number(tokens: Tensor, numbers: Tensor) -> Tensor:
    """Encoded tokens ``(batch, heads, tokens, bytes)`` with a number behind each."""
    rows = numbers.contiguous().unsqueeze(-1).view(torch.uint8).unsqueeze(1)
    return torch.cat([tokens, rows.to(tokens.device).expand(*tokens.shape[:-1], -1)], dim=-1)


def split_number(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Undo :func:`join_number`; the numbers are those of the first head."""
    numbers = tokens[:, 0, :, -NUMBER_BYTES:].clone(memory_format=torch.contiguous_format)
    return tokens[..., :-NUMBER_BYTES], numbers.view(torch.int32).squeeze(-1)
