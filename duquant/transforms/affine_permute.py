"""Invertible blocks in the place of rotations, trained from where the greedy search ends.

``x A₁ P A₂`` has the form of :class:`~duquant.transforms.rotate_permute.RotatePermute`, and costs
the same, but every block may become any invertible matrix. Weights take the inverse's transpose, so
nothing changes while nothing is quantized. The blocks are trained on the decoder block's output
together with the clip factors, as FlatQuant (Sun et al. 2024) trains its Kronecker products. Scales
of channels are part of a block, so none are learned beside it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from duquant.ops.dual_transform import DualTransform, apply_transform, inverse_transposed
from duquant.ops.rotation import BaseSource
from duquant.recipe_parts import RotationConfig
from duquant.transforms.rotate_permute import RotatePermute
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
    ) -> "AffinePermute":
        """Begin with the rotations of the greedy search; they learn from there."""
        start = RotatePermute.search(x, options, generator, draw_base).matrices
        rotations = start.rotations.expand(-1, x.shape[-1] // options.block_size, -1, -1)
        found = cls(x.shape[-1], DualTransform(rotations.contiguous(), start.permutations))
        found.learn({"rotations": nn.Parameter(found.rotations)})
        return found

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
