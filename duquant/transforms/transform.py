"""What a transform can do: the class that every file of this folder derives from.

    y = x · T        W -> W · T⁻ᵀ        so  y W'ᵀ = x Wᵀ

An orthogonal ``T`` is its own inverse's transpose, so activations and weights go through the same
product. Tensors of the transform are buffers that keep their dtype; only what it learns are
parameters.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from duquant.ops.rotation import BaseSource
from duquant.ops.value_rules import ValueRule
from duquant.recipe_parts import RotationConfig
from duquant.transforms.exact_buffers import ExactBuffers

StoredShapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of what a file holds, by name; empty tensors are not stored."""


class Transform(ExactBuffers):
    """A linear map of a site's channels.

    Args:
        width: channels.
    """

    stored_rules: ClassVar[Mapping[str, ValueRule]] = {}
    """What the stored tensors may hold, by name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    @classmethod
    @abstractmethod
    def search(
        cls,
        x: Tensor,
        options: RotationConfig,
        generator: torch.Generator,
        draw_base: BaseSource | None = None,
    ) -> "Transform":
        """Find the transform for a calibration tensor.

        Args:
            x: float32 ``(tokens, width)``, already smoothed.
            options: how to search.
            generator: randomness, on the CPU.
            draw_base: replaces random base matrices, in tests.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Transform activations ``(..., width)``; computed in the dtype of ``x``."""

    def on_weight(self, weight: Tensor) -> Tensor:
        """Transform a weight ``(out, width)`` that reads the site: by the inverse's transpose."""
        transformed: Tensor = self(weight)
        return transformed

    @abstractmethod
    def off_weight(self, weight: Tensor) -> Tensor:
        """Undo :meth:`on_weight`."""

    @abstractmethod
    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Follow activations ``(tokens, width)`` through the transform, for pictures and reports.

        Yields:
            A stage's name and the tensor behind it; none where nothing is done.
        """

    @classmethod
    @abstractmethod
    def stored_shapes(cls, width: int, options: RotationConfig) -> StoredShapes:
        """What :meth:`store` gives for a site of ``width`` channels."""

    @abstractmethod
    def store(self) -> dict[str, Tensor]:
        """What a file must hold, named as this module's buffers are."""

    @classmethod
    @abstractmethod
    def restore(cls, width: int, tensors: Mapping[str, Tensor]) -> "Transform":
        """Undo :meth:`store`; tensors may be on the meta device."""

    @classmethod
    def learned_shapes(cls, width: int, options: RotationConfig) -> dict[str, tuple[int, ...]]:
        """Shapes of what is trained, by the names of the parameters; empty if nothing is."""
        return {}

    def learn(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Train these parameters in the place of this module's own, named as they are."""
        for name, parameter in parameters.items():
            delattr(self, name)
            self.register_parameter(name, parameter)

    def settle(self) -> None:
        """End the training: parameters become buffers that stay as they are."""
        for name, parameter in list(self.named_parameters(recurse=False)):
            delattr(self, name)
            self.register_buffer(name, parameter.detach().clone())

    def condition(self) -> float:
        """Largest condition number, 1 of what is orthogonal."""
        return 1.0

    @property
    def learns(self) -> bool:
        """Whether it has parameters."""
        return next(self.parameters(), None) is not None
