"""Our own layout, as ``fit`` writes it: brings a model of an earlier release up to date."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.export.quantization_config import DuquantConfig


class Native:
    """Everything as it is, under today's names."""

    name: ClassVar[str] = "native"
    about: ClassVar[str] = "A copy in the layout of the release that wrote it."

    dtype: ClassVar[torch.dtype | None] = None

    def model_config(self, recipe: Recipe, config: dict[str, Any]) -> dict[str, Any]:
        """The same; there is a place for every recipe."""
        return config

    def tensors(self, block: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
        """The block's state."""
        state: dict[str, Tensor] = block.state_dict()
        return state

    def quantization_config(
        self, recipe: Recipe, checksums: dict[str, str], model_config: dict[str, Any]
    ) -> dict[str, Any]:
        """The recipe, checksums, and what else decides the model's numbers."""
        config = DuquantConfig(recipe.to_dict(), checksums=checksums, model_config=model_config)
        values: dict[str, Any] = config.to_dict()
        return values
