"""What a way of rounding can do: the protocol that the files of this folder implement."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from duquant.formats.number_format import NO_CLIP, Clip, Grid, NumberFormat


class Rounded(NamedTuple):
    """A weight's codes, chosen once; packing and freezing read them.

    Attributes:
        codes: ``(out, in)``, rows whole.
        grid: of their groups, each ``(out · groups, 1)``.
        damping: share of the Gram matrix's mean diagonal that had to be added to it, 0 where no
            Gram matrix was used, infinite where it was of no use.
        is_raised: whether that is more than was asked for.
    """

    codes: Tensor
    grid: Grid
    damping: float = 0.0
    is_raised: bool = False


class WeightRounding(Protocol):
    """How the codes of a weight are chosen.

    Attributes:
        name: the rounding's name in recipes.
        needs_gram: whether it has to know the linear's inputs.
    """

    name: ClassVar[str]
    needs_gram: ClassVar[bool]

    def __call__(
        self, weight: Tensor, form: NumberFormat, clip: Clip = NO_CLIP, gram: Tensor | None = None
    ) -> Rounded:
        """Choose the codes of a weight.

        Args:
            weight: ``(out, in)``, float32.
            form: a format with codes, whose groups divide ``in``.
            clip: of the weight's groups, numbers or ``(out · groups, 1)``.
            gram: ``Xᵀ X`` of what the linear reads, ``(in, in)``, where it is needed.
        """

    def together(
        self,
        weights: Sequence[Tensor],
        form: NumberFormat,
        clips: Sequence[Clip],
        gram: Tensor | None = None,
    ) -> list[Rounded]:
        """Choose the codes of weights that read the same inputs, each as if it were alone.

        Args:
            weights: each ``(out, in)``, float32.
            form: of all of them, as above.
            clips: one for each of them, as above.
            gram: as above.
        """
