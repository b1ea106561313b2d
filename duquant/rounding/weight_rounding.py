"""What a way of rounding can do: the protocol that the files of this folder implement."""

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
