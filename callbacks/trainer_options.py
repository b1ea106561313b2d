"""Options of the Trainer that would change a run's numbers behind its back.

Model, recipe and data decide the numbers, and only they are in a run's fingerprint. The Trainer can
compute in another precision, leave data out, or change gradients on their way to the optimizer; a
resumed run could do so halfway. Such options are refused, naming the one that does it openly.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import SingleDeviceStrategy

from callbacks.data_parallel import BlockParallel

Requirement = tuple[tuple[str, ...], str]
"""How the accepted values are spelled, the usual one first (1 is one batch, 1.0 is all of them),
and why no others are."""

MEASURING: dict[str, Requirement] = {
    "fast_dev_run": (("False",), "it skips what a run consists of"),
    "precision": (("32-true",), "a run computes in the precision of model.dtype; set that instead"),
    "overfit_batches": (("0.0", "0"), "it leaves data out; use data.num_samples"),
    "limit_val_batches": (("1.0",), "it leaves data out; use data.validation_windows"),
}
"""What perplexities depend on."""

CALIBRATING: dict[str, Requirement] = {
    **MEASURING,
    "limit_train_batches": (("1.0",), "it leaves data out; use data.num_samples"),
    "accumulate_grad_batches": (("1",), "a step sees model.lwc.batch_size samples; set that"),
    "gradient_clip_val": (
        ("0", "0.0", "None"),
        "clip factors learn from their gradients as they are; use model.lwc.learning_rate",
    ),
    "reload_dataloaders_every_n_epochs": (("1",), "every block has data of its own"),
    "num_sanity_val_steps": (("0",), "half a model is not worth measuring"),
    "val_check_interval": (("1.0",), "half a model is not worth measuring"),
}
"""What the quantized model depends on, too."""


CHANGING = {
    BatchSizeFinder: "set model.lwc.batch_size",
    GradientAccumulationScheduler: "a step sees model.lwc.batch_size samples; set that",
    LearningRateFinder: "set model.lwc.learning_rate",
    StochasticWeightAveraging: "clip factors are those of a block's last step",
    WeightAveraging: "clip factors are those of a block's last step",
}
"""Lightning's callbacks that would change the numbers, and why they are refused."""
LOSS = "lwc/loss"
"""The only metric of a fit; perplexities are measured after it."""


@contextmanager
def building_a_trainer() -> Iterator[None]:
    """Let whatever Lightning cannot build be the user's mistake, of whatever kind its error is.

    Raises:
        ValueError: saying what Lightning says.
    """
    try:
        yield
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"trainer: {error}") from error


def require_supported(trainer: Trainer, stage: str, *, has_lwc: bool = True) -> None:
    """Check the Trainer's options before anything is written.

    Args:
        trainer: as it was built.
        stage: ``fit``, or anything that only measures.
        has_lwc: whether blocks learn, and so have a loss.

    Raises:
        ValueError: naming the option, its value, the only one that will do, and why.
    """
    for option, (accepted, reason) in (CALIBRATING if stage == "fit" else MEASURING).items():
        value = getattr(trainer, option)
        if str(value) not in accepted:
            raise ValueError(f"trainer.{option} is {value}; it must be {accepted[0]}: {reason}")
    if trainer.world_size > 1 and not isinstance(trainer.strategy, BlockParallel):
        raise ValueError(
            f"trainer.strategy must be ddp with {trainer.world_size} processes (trainer.devices × "
            f"trainer.num_nodes)"
        )
    if not isinstance(trainer.strategy, (BlockParallel, SingleDeviceStrategy)):
        name = type(trainer.strategy).__name__
        raise ValueError(f"trainer.strategy is {name}; it must be auto or ddp, by name")
    if stage == "fit":
        _require_harmless_callbacks(trainer, has_lwc)


def _require_harmless_callbacks(trainer: Trainer, has_lwc: bool) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind, reason in CHANGING.items():
            if isinstance(callback, kind):
                raise ValueError(f"trainer.callbacks has a {type(callback).__name__}: {reason}")
        if isinstance(callback, EarlyStopping) and not (has_lwc and callback.monitor == LOSS):
            there_is = f"a fit has {LOSS} alone" if has_lwc else "without LWC a fit has none"
            raise ValueError(
                f"trainer.callbacks has an EarlyStopping on the metric {callback.monitor}, but "
                f"{there_is}"
            )
