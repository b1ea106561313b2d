"""Invertible blocks in the place of rotations: balanced, trained, or both.

``x A₁ P A₂`` has the form of :class:`~duquant.transforms.rotate_permute.RotatePermute`, and costs
the same, but every block may become any invertible matrix. Weights take the inverse's transpose, so
nothing changes while nothing is quantized. The blocks begin as the rotations of the greedy search,
or each is followed by one of them and balances what tokens and weights lose to rounding
(:mod:`duquant.ops.balance`). They are trained on the decoder block's output together with the clip
factors, as FlatQuant (Sun et al. 2024) trains its Kronecker products. Scales of channels are part
of a block, so none are learned beside it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from duquant.ops.dual_transform import DualTransform, apply_transform, inverse_transposed
from duquant.ops.rotation import BaseSource, block_rotate
from duquant.recipe_parts import RotationConfig
from duquant.transforms.rotate_permute import RotatePermute
from duquant.transforms.site_moments import SiteMoments
from duquant.transforms.transform import StoredShapes


class AffinePermute(RotatePermute):
    """``x A₁ P A₂``: invertible blocks with a zigzag permutation between them.

    ``rotations`` holds the blocks ``(times + 1, width / b, b, b)``, a matrix for each.
    """

    @classmethod
    def search(
        cls,
        x: Tensor,
        options: RotationConfig,
        generator: torch.Generator,
        draw_base: BaseSource | None = None,
        moments: SiteMoments | None = None,
    ) -> "AffinePermute":
        """The rotations of the greedy search, behind blocks that balance, if moments are given.

        The search sees what the first balanced blocks make of ``x``.
        """
        first = None if moments is None else moments.balanced_blocks(options.block_size)
        seen = x if first is None else block_rotate(x, first)
        start = RotatePermute.search(seen, options, generator, draw_base).matrices
        rotations = start.rotations.expand(-1, x.shape[-1] // options.block_size, -1, -1)
        if moments is not None:
            rotations = _balanced(rotations, start.permutations, moments)
        return cls(x.shape[-1], DualTransform(rotations.contiguous(), start.permutations))

    def on_weight(self, weight: Tensor) -> Tensor:
        """``W A₁⁻ᵀ P A₂⁻ᵀ``."""
        return apply_transform(weight, inverse_transposed(self.matrices))

    @classmethod
    def learned_shapes(cls, width: int, options: RotationConfig) -> dict[str, tuple[int, ...]]:
        """The blocks."""
        return {"rotations": cls.stored_shapes(width, options)["rotations"][0]}

    @classmethod
    def stored_shapes(cls, width: int, options: RotationConfig) -> StoredShapes:
        """As those of rotations, with a matrix for every block."""
        shapes = RotatePermute.stored_shapes(width, options)
        times, _, size, _ = shapes["rotations"][0]
        return {**shapes, "rotations": ((times, width // size, size, size), torch.float32)}

    @classmethod
    def restore(cls, width: int, tensors: Mapping[str, Tensor]) -> "AffinePermute":
        """From what :meth:`store` gave; it does not learn any more."""
        return cls(width, RotatePermute.restore(width, tensors).matrices)

    def condition(self) -> float:
        """Largest condition number of a block: by how much it can enlarge a relative error."""
        return float(torch.linalg.cond(self.rotations.detach().double()).max())


def _balanced(rotations: Tensor, permutations: Tensor, moments: SiteMoments) -> Tensor:
    """Every rotation behind the blocks that balance what reaches it."""
    found = []
    for index, rotation in enumerate(rotations):
        blocks = moments.balanced_blocks(rotation.shape[-1]) @ rotation
        found.append(blocks)
        if index < len(permutations):
            moments = moments.behind(blocks, permutations[index])
    return torch.stack(found)
