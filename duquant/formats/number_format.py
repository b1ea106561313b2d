"""What a number format can do: the protocol that every file of this folder implements.

Values that share a scale are a *row*: the last dimension of ``x``. A tensor whose scales are shared
by groups of consecutive entries is split into such rows beforehand, by :func:`split_rows`.

    x  --grid-->  scales        x, scales  --codes-->  small integers  --values-->  x, rounded

A format is a frozen dataclass: it is part of the recipe, it is compared, and it holds no tensors.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from duquant.ops.value_rules import ValueRule

Grid = tuple[Tensor, ...]
"""Scales (and zero points) of rows, each ``(..., rows, 1)``: sliced by row as the rows are."""

StoredShapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of what is stored, by name.

A part with two dimensions, ``(rows, …)``, lies row by row and can be cut and joined as the rows
are. A part of shape ``(1,)`` belongs to the whole tensor.
"""


class Clip(NamedTuple):
    """Factors that shrink a row's range before its scale is chosen.

    Attributes:
        high: on the row's maximum, a number or ``(..., rows, 1)``.
        low: on its minimum, likewise.
        moves_zero_point: whether the factors also learn through the zero point, where there is one.
    """

    high: Tensor | float = 1.0
    low: Tensor | float = 1.0
    moves_zero_point: bool = False


NO_CLIP = Clip()


class NumberFormat(Protocol):
    """How numbers of few bits stand for the rows of a tensor.

    Attributes:
        name: the format's name in recipes.
        learns_clip_factors: whether the scale passes a useful gradient on to the clip factors; a
            scale that is a power of two, or is rounded to 8 bits, does not.
        needs_peak: whether a row's grid depends on the largest magnitude of the whole tensor, which
            has to be calibrated where tokens arrive one by one.
        clip_ratios: factors on a row's range that a search tries, the first one first.
    """

    name: ClassVar[str]
    learns_clip_factors: ClassVar[bool]
    needs_peak: ClassVar[bool]
    clip_ratios: ClassVar[Sequence[float]]

    @property
    def bits(self) -> int:
        """Bits of a code; 16 leaves tensors alone."""

    @property
    def stored_rules(self) -> Mapping[str, ValueRule]:
        """What the stored tensors may hold, by name."""

    @property
    def group_size(self) -> int | None:
        """Consecutive entries that share a scale; ``None``: all of a row."""

    def grid(self, x: Tensor, clip: Clip = NO_CLIP, peak: Tensor | None = None) -> Grid:
        """Choose the scales of the rows ``x (..., rows, columns)``.

        Args:
            x: float rows.
            clip: shrinks their ranges.
            peak: largest magnitude of the tensor, a scalar, where the format needs one (default:
                that of ``x``).
        """

    def codes(self, x: Tensor, grid: Grid) -> Tensor:
        """Codes of rows: ``uint8`` (``int32`` above 8 bits), shape of ``x``.

        Whatever lies outside of a row's range gets the code of the nearer end.
        """

    def values(self, codes: Tensor, grid: Grid) -> Tensor:
        """What codes stand for, in the dtype of the scales, shape of ``codes``."""

    def fake_quantize(self, x: Tensor, clip: Clip = NO_CLIP, peak: Tensor | None = None) -> Tensor:
        """``values(codes(x))``, shape and dtype of ``x``; rounding passes its gradient through."""

    def store(self, codes: Tensor, grid: Grid) -> dict[str, Tensor]:
        """What lies in a file or in a cache.

        Args:
            codes: ``(rows, columns)``, rows whole, not split into groups.
            grid: of their groups, each ``(rows · groups, 1)``.

        Returns:
            Tensors by name, on the device of ``codes``, as :meth:`stored_shapes` says.
        """

    def restore(self, tensors: dict[str, Tensor], columns: int) -> tuple[Tensor, Grid]:
        """Undo :meth:`store`: codes ``(rows, columns)`` and the grid of their groups."""

    def stored_shapes(self, rows: int, columns: int) -> StoredShapes:
        """Shapes and dtypes of what :meth:`store` returns."""

    def fitted_to(self, columns: int) -> "NumberFormat":
        """The same format with the largest group, at most its own, that divides ``columns``."""


def split_rows(x: Tensor, group_size: int | None) -> Tensor:
    """``x (..., columns)`` as rows that share a scale, ``(rows · groups, group_size)``.

    Without a group size it is returned as it is: every row has one scale.
    """
    return x if group_size is None else x.reshape(-1, group_size)


def num_groups(columns: int, group_size: int | None) -> int:
    """Groups of a row of ``columns`` entries.

    Raises:
        ValueError: if the rows cannot be divided into such groups.
    """
    if group_size is None:
        return 1
    if columns % group_size:
        raise ValueError(f"groups of {group_size} do not divide rows of {columns} entries")
    return columns // group_size


def largest_magnitude(x: Tensor, clip: Clip = NO_CLIP) -> Tensor:
    """Largest magnitude of every row's clipped range; ``x (..., rows, columns)`` to ``(…, 1)``."""
    high = clip.high * x.amax(dim=-1, keepdim=True)
    low = clip.low * x.amin(dim=-1, keepdim=True)
    return torch.maximum(high.abs(), low.abs())


def largest_divisor(columns: int, limit: int) -> int:
    """Largest number up to ``limit`` that divides ``columns``."""
    return next(size for size in range(min(limit, columns), 0, -1) if columns % size == 0)
