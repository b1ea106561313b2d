"""The parts of a recipe that say what is learned: clip factors, transforms, the whole model's rest.

Frozen dataclasses that check themselves when built, as those of :mod:`duquant.recipe_parts`.
"""

from dataclasses import dataclass
from typing import Literal

from duquant.recipe_parts import require_choices


@dataclass(frozen=True)
class LWCConfig:
    """Learnable weight clipping: train each output channel's clip factors, block by block.

    The defaults were measured against the authors' training (20 epochs, rate 0.01, batch 1,
    constant start and rate, no zero-point gradient), which these options also describe.

    Args:
        epochs: passes over the calibration samples per block; 0 turns LWC off.
        learning_rate: AdamW's first rate for the factors' logits.
        batch_size: calibration samples per step, of all processes together.
        augmented_loss: also match the full-precision block's output on the quantized stream.
        initialization: where the factors start: ``search`` takes for every row the ratio that costs
            its linear's output least, ``constant`` takes sigmoid(4) (the authors' code).
        schedule: the learning rate falls to 0 over a block's steps along a ``cosine``, or stays
            ``constant`` (the authors' code).
        zero_point_gradient: learn through the zero points as well; off in the authors' code.
    """

    epochs: int = 20
    learning_rate: float = 0.2
    batch_size: int = 2
    augmented_loss: bool = False
    initialization: Literal["search", "constant"] = "constant"
    schedule: Literal["cosine", "constant"] = "cosine"
    zero_point_gradient: bool = True

    def __post_init__(self) -> None:
        """Check the numbers and the choices."""
        require_choices("lwc", self)
        if self.epochs < 0:
            raise ValueError(f"lwc.epochs is {self.epochs}; it must be 0 (no LWC) or more")
        if not self.learning_rate > 0:
            raise ValueError(f"lwc.learning_rate is {self.learning_rate}; it must be above 0")
        if self.batch_size < 1:
            raise ValueError(f"lwc.batch_size is {self.batch_size}; it must be at least 1")


@dataclass(frozen=True)
class TrainingConfig:
    """What is trained beside the weights' clip factors, and on what; ``lwc`` says how long.

    Args:
        activation_clips: learn a clip factor for each end of the tokens' ranges, one pair for every
            site and for Q, K and V, from the factors of ``clipping``.
        rate: AdamW's first rate for transforms that learn.
        inputs: train on what the block receives in the ``quantized`` model, or on what it receives
            in ``full_precision``.
        loss: ``mse`` over all outputs, or ``relative``: every token's squared error is divided by
            its target's square, so that massive tokens count as much as others, and tokens that are
            massive in the quantized model alone hardly change the gradient.
    """

    activation_clips: bool = False
    rate: float = 0.005
    inputs: Literal["quantized", "full_precision"] = "quantized"
    loss: Literal["mse", "relative"] = "mse"

    def __post_init__(self) -> None:
        """Check the numbers and the choices."""
        require_choices("training", self)
        if not self.rate > 0:
            raise ValueError(f"training.rate is {self.rate}; it must be above 0")


@dataclass(frozen=True)
class DistillationConfig:
    """Train the whole quantized model on the original's predictions, when all blocks are finished.

    Weights' codes and scales stay as they are; what is stored beside them in floating point learns:
    transforms, biases, subtracted means, norms and the clip factors of activations.

    Args:
        epochs: passes over the calibration samples; 0 turns it off.
        learning_rate: AdamW's first rate, which falls to 0 along a cosine, in parts of every
            tensor's root mean square.
        batch_size: calibration samples per step, of all processes together.
    """

    epochs: int = 0
    learning_rate: float = 0.0005
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.epochs < 0:
            raise ValueError(f"distillation.epochs is {self.epochs}; it must be 0 (off) or more")
        if not self.learning_rate > 0:
            raise ValueError(
                f"distillation.learning_rate is {self.learning_rate}; it must be above 0"
            )
        if self.batch_size < 1:
            raise ValueError(f"distillation.batch_size is {self.batch_size}; it must be at least 1")
