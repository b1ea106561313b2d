"""Options of the Trainer that would change a run's numbers behind its back.

Model, recipe and data decide the numbers, and only they are in a run's fingerprint. The Trainer can
compute in another precision, leave data out, or change gradients on their way to the optimizer; a
resumed run could do so halfway. Such options are refused, naming the one that does it openly.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.strategies import SingleDeviceStrategy

from callbacks.data_parallel import BlockParallel
from duquant.config import Recipe

Requirement = tuple[tuple[str, ...], str]
"""How the accepted values are spelled, the usual one first (1 is one batch, 1.0 is all of them),
and why no others are."""

BATCH_SIZE, EPOCHS, RATE = (
    f"model.lwc.{name} or model.distillation.{name}"
    for name in ("batch_size", "epochs", "learning_rate")
)

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
    "accumulate_grad_batches": (("1",), f"a step sees {BATCH_SIZE} samples; set that"),
    "gradient_clip_val": (
        ("0", "0.0", "None"),
        f"what learns follows its gradients as they are; use {RATE}",
    ),
    "reload_dataloaders_every_n_epochs": (("1",), "every block has data of its own"),
    "num_sanity_val_steps": (("0",), "half a model is not worth measuring"),
    "val_check_interval": (("1.0",), "half a model is not worth measuring"),
}
"""What the quantized model depends on, too."""


IGNORED: dict[str, Requirement] = {
    "max_epochs": (("None",), f"the number of blocks decides; set {EPOCHS}"),
    "check_val_every_n_epoch": (("1",), "half a model is not worth measuring"),
    "limit_test_batches": (("None",), "nothing is tested; see evaluate"),
    "limit_predict_batches": (("None",), "nothing is predicted"),
    "gradient_clip_algorithm": (("None",), "gradients are not clipped"),
}
"""What a fit sets itself or has no use for, as it is given: it would be without effect."""


CHANGING = {
    BatchSizeFinder: f"set {BATCH_SIZE}",
    GradientAccumulationScheduler: f"a step sees {BATCH_SIZE} samples; set that",
    LearningRateFinder: f"set {RATE}",
    StochasticWeightAveraging: "clip factors are those of a block's last step",
    WeightAveraging: "clip factors are those of a block's last step",
}
"""Why some of Lightning's callbacks are refused; the reason of the others is :data:`UNKNOWN`."""
UNKNOWN = "it may change weights or how they are trained"
HARMLESS: tuple[type[Callback], ...] = (
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    SaveConfigCallback,
    ThroughputMonitor,
    Timer,
)
"""Lightning's callbacks (and what is derived from them) that watch, save or stop. All others of
Lightning are refused, and classes derived from those too."""
GRADIENT_HOOKS = (
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
)
"""Where a callback of somebody else's stands between a loss and its step. It may only watch, which
nobody can tell from here; so it is accepted, and a warning says so."""
OWN = ("callbacks.", "duquant.")
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


def lasting_metric(recipe: Recipe) -> str | None:
    """The metric that every step of a fit has; with distillation the last ones have another."""
    return LOSS if recipe.has_lwc and not recipe.distillation.epochs else None


def require_supported(trainer: Trainer, stage: str, *, metric: str | None = LOSS) -> None:
    """Check the Trainer's options before anything is written.

    Args:
        trainer: as it was built.
        stage: ``fit``, or anything that only measures.
        metric: that every step of the fit has, of :func:`lasting_metric`.

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
        _require_harmless_callbacks(trainer, metric)


def require_effective(options: Mapping[str, Any]) -> None:
    """Check the options of a fit as they were given: none may be without effect.

    Args:
        options: the Trainer's, by name; what is missing was not given.

    Raises:
        ValueError: naming the option, its value, and what to set instead.
    """
    for option, (accepted, reason) in IGNORED.items():
        value = options.get(option)
        if value is not None and str(value) not in accepted:
            raise ValueError(f"trainer.{option} is {value}, which has no effect: {reason}")


def _require_harmless_callbacks(trainer: Trainer, metric: str | None) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        lightnings = [kind for kind in type(callback).__mro__ if _is_lightnings(kind)]
        if not all(issubclass(kind, HARMLESS) for kind in lightnings):
            reasons = (reason for kind, reason in CHANGING.items() if isinstance(callback, kind))
            raise ValueError(f"trainer.callbacks has a {name}: {next(reasons, UNKNOWN)}")
        if isinstance(callback, EarlyStopping) and callback.monitor != metric:
            there_is = f"a fit has {metric} alone" if metric else "no metric lasts a whole fit here"
            raise ValueError(
                f"trainer.callbacks has an EarlyStopping on the metric {callback.monitor}, but "
                f"{there_is}"
            )
        hooks = [hook for hook in GRADIENT_HOOKS if _has_hook(callback, hook)]
        if hooks and not type(callback).__module__.startswith(OWN):
            _warn_of(name, ", ".join(hooks))


def _is_lightnings(kind: type) -> bool:
    """Whether Lightning has this callback; the base of all of them does nothing."""
    is_its_own = kind.__module__.partition(".")[0] in ("lightning", "pytorch_lightning")
    return is_its_own and issubclass(kind, Callback) and kind is not Callback


def _has_hook(callback: Callback, hook: str) -> bool:
    return hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook)


@cache
def _warn_of(name: str, hooks: str) -> None:
    logging.getLogger(__name__).warning(
        "trainer.callbacks has a %s with %s: if it changes gradients it changes the numbers, and "
        "nothing of the run tells that it was there",
        name,
        hooks,
    )
