"""Rotate, permute, rotate: the dual transformation of DuQuant (section 3.3) as a module.

The maths is in :mod:`duquant.ops.dual_transform`, the search for a rotation in
:mod:`duquant.ops.rotation`. The ``selector`` of the options chooses how a rotation is found.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from duquant.ops.dual_transform import (
    DualTransform,
    apply_transform,
    find_transform,
    inverse_transform,
)
from duquant.ops.rotation import BaseSource, block_rotate, find_rotation, random_base
from duquant.ops.value_rules import FINITE_FLOAT32, PERMUTATIONS
from duquant.recipe_parts import RotationConfig
from duquant.transforms.transform import StoredShapes, Transform


class RotatePermute(Transform):
    """``x R₁ P R₂``: block-diagonal rotations with a zigzag permutation between them.

    Args:
        width: channels.
        matrices: the rotations and permutations.
    """

    EXACT = ("rotations",)
    stored_rules = MappingProxyType({"rotations": FINITE_FLOAT32, "permutations": PERMUTATIONS})
    rotations: Tensor
    permutations: Tensor

    def __init__(self, width: int, matrices: DualTransform) -> None:
        super().__init__(width)
        self.register_buffer("rotations", matrices.rotations)
        self.register_buffer(
            "permutations", matrices.permutations, persistent=matrices.permutations.numel() > 0
        )

    @classmethod
    def search(
        cls,
        x: Tensor,
        options: RotationConfig,
        generator: torch.Generator,
        draw_base: BaseSource | None = None,
    ) -> "RotatePermute":
        """Search on ``x`` as it stands before every rotation."""
        find = partial(
            find_rotation,
            block_size=options.block_size,
            max_steps=options.max_steps,
            selector=options.selector,
            scope=options.scope,
            generator=generator,
            draw_base=draw_base or random_base(generator),
        )
        times, size = options.permutation_times, options.block_size
        return cls(x.shape[-1], find_transform(x, find, block_size=size, permutation_times=times))

    @property
    def matrices(self) -> DualTransform:
        """The dual transformation."""
        return DualTransform(self.rotations, self.permutations)

    def forward(self, x: Tensor) -> Tensor:
        """``x R₁ P R₂``."""
        return apply_transform(x, self.matrices)

    def off_weight(self, weight: Tensor) -> Tensor:
        """Back through the transposed rotations and the inverse permutations."""
        return apply_transform(weight, inverse_transform(self.matrices))

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Behind the first rotation, behind the first permutation, at the end."""
        for index, rotation in enumerate(self.rotations):
            x = block_rotate(x, rotation)
            if index == 0:
                yield "rotated", x
            if index < len(self.permutations):
                x = x.index_select(-1, self.permutations[index])
                if index == 0:
                    yield "permuted", x
        if len(self.permutations):
            yield "transformed", x

    @classmethod
    def stored_shapes(cls, width: int, options: RotationConfig) -> StoredShapes:
        """Rotations as float32 (a rounded one is not orthogonal), permutations as int32."""
        times, size = options.permutation_times, options.block_size
        count = 1 if options.scope == "shared" else width // size
        shapes: StoredShapes = {"rotations": ((times + 1, count, size, size), torch.float32)}
        if times:
            shapes["permutations"] = ((times, width), torch.int32)
        return shapes

    def store(self) -> dict[str, Tensor]:
        """Rotations and permutations."""
        stored = {"rotations": self.rotations.float()}
        if len(self.permutations):
            stored["permutations"] = self.permutations.to(torch.int32)
        return stored

    @classmethod
    def restore(cls, width: int, tensors: Mapping[str, Tensor]) -> "RotatePermute":
        """From what :meth:`store` gave."""
        none = torch.zeros(0, width, dtype=torch.int64, device="cpu")
        permutations = tensors.get("permutations", none)
        return cls(width, DualTransform(tensors["rotations"], permutations))
