"""Trainer options: what would change a run's numbers is refused, by name."""

from pathlib import Path
from typing import Any

import pytest
from lightning import Callback
from lightning.pytorch import callbacks
from lightning.pytorch.strategies import DDPStrategy

from callbacks.block_progression import BlockProgression
from callbacks.trainer_options import (
    CALIBRATING,
    CHANGING,
    GRADIENT_HOOKS,
    IGNORED,
    MEASURING,
    _warn_of,
    building_a_trainer,
    lasting_metric,
    require_effective,
    require_supported,
)
from duquant.config import DistillationConfig, LWCConfig, Recipe
from tests.in_process import (
    LIGHTNING_WARNINGS,
    FinishedRun,
    calibrate,
    small_data,
    small_language_model,
    small_trainer,
    write_text,
)
from tests.small_run import write_small_model

pytestmark = [
    *LIGHTNING_WARNINGS,
    pytest.mark.filterwarnings("ignore:.*mixed precision"),
    pytest.mark.filterwarnings("ignore:.*`overfit_batches`"),
]

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"fast_dev_run": True}, "fast_dev_run is True; it must be False"),
    ({"precision": "bf16-true"}, r"precision is bf16-true; it must be 32-true: .*model\.dtype"),
    ({"precision": "bf16-mixed"}, "precision is bf16-mixed"),
    ({"precision": 64}, "precision is 64-true"),
    ({"overfit_batches": 2}, r"overfit_batches is 2; .*data\.num_samples"),
    ({"limit_val_batches": 0}, r"limit_val_batches is 0; .*data\.validation_windows"),
    ({"limit_val_batches": 0.5}, "limit_val_batches is 0.5; it must be 1.0"),
    ({"limit_train_batches": 1}, r"limit_train_batches is 1; it must be 1\.0: .*data\.num_samples"),
    ({"limit_train_batches": 0.5}, "limit_train_batches is 0.5"),
    ({"accumulate_grad_batches": 2}, r"_batches is 2; it must be 1: .*model\.lwc\.batch_size"),
    ({"gradient_clip_val": 0.5}, r"gradient_clip_val is 0\.5; it must be 0: "),
    ({"reload_dataloaders_every_n_epochs": 0}, "n_epochs is 0; it must be 1: every block"),
    ({"reload_dataloaders_every_n_epochs": 3}, "n_epochs is 3; it must be 1"),
    ({"num_sanity_val_steps": 2}, "num_sanity_val_steps is 2; it must be 0: half a model"),
    ({"val_check_interval": 0.5}, r"val_check_interval is 0\.5; it must be 1\.0"),
]


@pytest.mark.parametrize(("options", "complaint"), REFUSED)
def test_what_would_change_the_numbers_is_refused(options: dict[str, Any], complaint: str) -> None:
    trainer = small_trainer(**options)
    with pytest.raises(ValueError, match=complaint):
        require_supported(trainer, "fit")
    if not options.keys() & MEASURING:
        require_supported(trainer, "validate")


def test_a_strategy_of_lightnings_own_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy is DDPStrategy; it must be auto or ddp"):
        require_supported(small_trainer(strategy=DDPStrategy()), "fit")


def test_every_option_has_its_case() -> None:
    assert CALIBRATING.keys() <= {option for options, _ in REFUSED for option in options}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit_train_batches": 1.0, "limit_val_batches": None, "overfit_batches": 0},
        {"gradient_clip_val": 0.0, "precision": 32, "max_steps": 3, "max_time": "00:01:00:00"},
    ],
)
def test_what_changes_nothing_is_not(options: dict[str, Any]) -> None:
    require_supported(small_trainer(**options), "fit")


def test_a_calibration_refuses_them_itself(tmp_path: Path) -> None:
    source, text = write_small_model(tmp_path / "source", blocks=1), tmp_path / "text.txt"
    model, data = (
        small_language_model(source, tmp_path / "run"),
        small_data(source, write_text(text)),
    )
    with pytest.raises(ValueError, match="accumulate_grad_batches is 2"):
        calibrate(model, data, accumulate_grad_batches=2)
    assert not model.output_dir.exists()


def test_a_measurement_refuses_its_own(finished_run: FinishedRun) -> None:
    """Half of the windows would be reported as all of them."""
    model = small_language_model(finished_run.source, finished_run.output)
    trainer = small_trainer(BlockProgression(), limit_val_batches=1)
    with pytest.raises(ValueError, match=r"limit_val_batches is 1; it must be 1\.0"):
        trainer.validate(model, finished_run.data, verbose=False)


def changing() -> list[Callback]:
    return [
        callbacks.BackboneFinetuning(),
        callbacks.BatchSizeFinder(),
        callbacks.EMAWeightAveraging(),
        callbacks.GradientAccumulationScheduler({0: 2}),
        callbacks.LearningRateFinder(),
        callbacks.ModelPruning("l1_unstructured"),
        callbacks.StochasticWeightAveraging(0.1),
        callbacks.WeightAveraging(),
        type("Derived", (callbacks.ModelPruning,), {})("random_unstructured"),
        type("Both", (callbacks.Timer, callbacks.BaseFinetuning), {})(),
    ]


def harmless() -> list[Callback]:
    return [
        callbacks.DeviceStatsMonitor(),
        callbacks.EarlyStopping("lwc/loss"),
        callbacks.LambdaCallback(on_train_start=print),
        callbacks.LearningRateMonitor(),
        callbacks.ModelCheckpoint(),
        callbacks.ModelSummary(),
        callbacks.RichModelSummary(),
        callbacks.RichProgressBar(),
        callbacks.TQDMProgressBar(),
        callbacks.ThroughputMonitor(len),
        callbacks.Timer("00:01:00:00"),
        type("Derived", (callbacks.Timer,), {})("00:01:00:00"),
        type("Own", (Callback,), {"on_train_batch_end": lambda *_: None})(),
    ]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this project says, Lightning's own lines left out."""
    return [r.message for r in caplog.records if r.name == "callbacks.trainer_options"]


def trainer_with(callback: Callback) -> Any:
    """Just what is looked at: Lightning's own checks of callbacks are not meant here."""
    trainer = small_trainer()
    trainer.callbacks.append(callback)  # type: ignore[attr-defined]
    return trainer


@pytest.mark.parametrize("callback", changing(), ids=lambda callback: type(callback).__name__)
def test_callbacks_that_would_change_the_numbers_are_refused(callback: Callback) -> None:
    trainer = trainer_with(callback)
    with pytest.raises(ValueError, match=f"has a {type(callback).__name__}: "):
        require_supported(trainer, "fit")
    require_supported(trainer, "validate")


@pytest.mark.parametrize("callback", harmless(), ids=lambda callback: type(callback).__name__)
def test_callbacks_that_change_nothing_are_not(
    callback: Callback, caplog: pytest.LogCaptureFixture
) -> None:
    require_supported(trainer_with(callback), "fit")
    assert not told(caplog)


def test_every_callback_of_lightning_is_one_of_both() -> None:
    """But for bases that cannot be used alone; whatever another release adds is refused."""
    tried = {type(callback) for callback in (*changing(), *harmless())}
    bases = {"Callback", "Checkpoint", "ProgressBar", "BaseFinetuning"}
    unused = {"BasePredictionWriter", "OnExceptionCheckpoint", "SpikeDetection"}
    names = set(callbacks.__all__) - bases - unused
    assert names <= {kind.__name__ for kind in tried}
    assert tried >= CHANGING.keys()


@pytest.mark.parametrize("hook", GRADIENT_HOOKS)
@pytest.mark.parametrize("is_lambda", [False, True])
def test_who_stands_between_loss_and_step_is_told_of(
    hook: str, is_lambda: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_of.cache_clear()
    hooks: dict[str, Any] = {hook: lambda *_: None}
    own = callbacks.LambdaCallback(**hooks) if is_lambda else type("Own", (Callback,), hooks)()
    for _ in range(2):
        require_supported(trainer_with(own), "fit")
    (line,) = told(caplog)
    assert f"has a {type(own).__name__} with {hook}: if it changes" in line


@pytest.mark.parametrize("option", IGNORED)
def test_what_would_have_no_effect_is_refused(option: str) -> None:
    require_effective(dict.fromkeys(IGNORED))
    require_effective({"check_val_every_n_epoch": 1, "max_steps": 3})
    with pytest.raises(ValueError, match=f"trainer.{option} is 3, which has no effect: "):
        require_effective({option: 3})


@pytest.mark.parametrize(
    ("metric", "options", "words"),
    [
        ("nowhere", {}, "on the metric nowhere, but a fit has lwc/loss alone"),
        ("perplexity/text/quantized", {}, "but a fit has lwc/loss alone"),
        ("lwc/loss", {"lwc": LWCConfig(epochs=0)}, "no metric lasts a whole fit here"),
        ("lwc/loss", {"distillation": DistillationConfig(1)}, "no metric lasts a whole fit here"),
    ],
)
def test_early_stopping_needs_a_metric_that_lasts(
    metric: str, options: dict[str, Any], words: str
) -> None:
    trainer = small_trainer(callbacks.EarlyStopping(metric))
    with pytest.raises(ValueError, match=words):
        require_supported(trainer, "fit", metric=lasting_metric(Recipe(**options)))
    require_supported(small_trainer(callbacks.EarlyStopping("lwc/loss")), "fit")


@pytest.mark.parametrize(
    ("environment", "options", "words"),
    [
        ({"SLURM_NTASKS": "4"}, {}, "--ntasks-per-node"),
        ({"SLURM_NTASKS": "many"}, {}, "many"),
        ({}, {"accelerator": "tpu"}, "torch_xla"),
        ({}, {"devices": -1}, "should be an int > 0"),
        ({}, {"devices": "x"}, "should be an int > 0"),
        ({}, {"num_nodes": 0}, "num_nodes"),
    ],
)
def test_what_lightning_cannot_build_is_one_mistake(
    environment: dict[str, str],
    options: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"SLURM_JOB_NAME": "job", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words), building_a_trainer():
        small_trainer(**options)
