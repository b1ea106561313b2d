"""What an export target can do: the protocol that every file of this folder implements."""

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from duquant.config import Recipe


class Exporter(Protocol):
    """Writes quantized blocks in the layout of some reader.

    Attributes:
        name: the target's name on the command line.
        about: what the model card says of the result, a paragraph.
        dtype: in which every tensor is stored; ``None`` keeps each as it is.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    dtype: ClassVar[torch.dtype | None]

    def model_config(self, recipe: Recipe, config: dict[str, Any]) -> dict[str, Any]:
        """Check that the target can hold a model of this recipe, before anything is written.

        Args:
            recipe: how it was quantized.
            config: the original model's ``config.json``.

        Returns:
            What ``config.json`` says of the model in this layout, besides its quantization.

        Raises:
            ValueError: naming the options that it cannot express.
        """

    def tensors(self, block: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
        """What is stored of one block.

        Args:
            block: a finished block, on the CPU.
            recipe: how it was quantized.

        Returns:
            Tensors by their names within the block.
        """

    def quantization_config(
        self, recipe: Recipe, checksums: dict[str, str], model_config: dict[str, Any]
    ) -> dict[str, Any] | None:
        """The ``quantization_config`` of ``config.json``; ``None`` for a plain model."""
