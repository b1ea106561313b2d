"""No quantization: the tensor stays what it is, at its 16 bits.

It is a format so that a recipe can name it for any operand, but it has no codes: who stores or
multiplies codes asks for ``bits < 16`` first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NoReturn

from torch import Tensor

from duquant.formats.number_format import NO_CLIP, Clip, Grid, StoredShapes
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.ops.value_rules import ValueRule


@dataclass(frozen=True)
class Unquantized:
    """Leave the tensor alone; it has no options and stores nothing of its own."""

    name: ClassVar[str] = "unquantized"
    learns_clip_factors: ClassVar[bool] = False
    needs_peak: ClassVar[bool] = False
    clip_ratios: ClassVar[Sequence[float]] = ()
    stored_rules: ClassVar[Mapping[str, ValueRule]] = {}
    bits: ClassVar[int] = UNQUANTIZED_BITS
    group_size: ClassVar[None] = None

    def grid(self, x: Tensor, clip: Clip = NO_CLIP, peak: Tensor | None = None) -> Grid:
        """Nothing to choose: raises ``AssertionError``, as do the other methods about codes."""
        _has_no_codes()

    def codes(self, x: Tensor, grid: Grid) -> Tensor:
        """Raises ``AssertionError``."""
        _has_no_codes()

    def values(self, codes: Tensor, grid: Grid) -> Tensor:
        """Raises ``AssertionError``."""
        _has_no_codes()

    def fake_quantize(self, x: Tensor, clip: Clip = NO_CLIP, peak: Tensor | None = None) -> Tensor:
        """``x`` itself."""
        return x

    def store(self, codes: Tensor, grid: Grid) -> dict[str, Tensor]:
        """Raises ``AssertionError``."""
        _has_no_codes()

    def restore(self, tensors: dict[str, Tensor], columns: int) -> tuple[Tensor, Grid]:
        """Raises ``AssertionError``."""
        _has_no_codes()

    def stored_shapes(self, rows: int, columns: int) -> StoredShapes:
        """Raises ``AssertionError``: such a tensor is stored whole, in the model's dtype."""
        _has_no_codes()

    def fitted_to(self, columns: int) -> "Unquantized":
        """Itself."""
        return self


def _has_no_codes() -> NoReturn:
    raise AssertionError("an unquantized tensor has no codes; store and multiply it as it is")
