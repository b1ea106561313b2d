"""No transform: the site is rounded as it is."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from duquant.ops.rotation import BaseSource
from duquant.recipe_parts import RotationConfig
from duquant.transforms.transform import StoredShapes, Transform


class Identity(Transform):
    """Leaves activations and weights alone."""

    @classmethod
    def search(
        cls,
        x: Tensor,
        options: RotationConfig,
        generator: torch.Generator,
        draw_base: BaseSource | None = None,
    ) -> "Identity":
        """There is nothing to find."""
        return cls(x.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        return x

    def off_weight(self, weight: Tensor) -> Tensor:
        """``weight`` itself."""
        return weight

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """None."""
        return iter(())

    @classmethod
    def stored_shapes(cls, width: int, options: RotationConfig) -> StoredShapes:
        """Nothing."""
        return {}

    def store(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    @classmethod
    def restore(cls, width: int, tensors: Mapping[str, Tensor]) -> "Identity":
        """Needs no tensors."""
        return cls(width)
