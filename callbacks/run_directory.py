"""The run directory: what is checked before any long work begins, and whose directory it is.

config.yaml      the command's complete configuration; `validate -c` reads it
run.json         what the run is about: model, recipe, data (fingerprints, no paths)
run.lock         which process writes into the directory, while one does
preflight.json   what it was expected to take: memory, disk, time
model/           the quantized model, block by block
checkpoints/     last.ckpt, replaced every epoch
streams/         activations between blocks, until the run is finished
blocks/          one record and one picture per block
tensorboard/     curves, histograms, pictures
summary.json     perplexities and costs
validation.json  what a later `validate` measured
report.html, .md the run on a page
evaluation/      what a later `evaluate` measured
"""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from callbacks.checkpointing import DurableCheckpointIO, last_checkpoint
from callbacks.preflight import require_room
from duquant.atomic_files import partial, write_durably, write_json
from duquant.data.corpora import CORPUS_NAMES, require_source
from duquant.data.datamodule import CalibrationDataModule
from duquant.json_files import read_json
from duquant.model.content_digest import content_digest
from duquant.model.decoder import Decoder
from duquant.model.finite_weights import require_finite_weights
from duquant.model.tokenizer import require_matching_vocabulary
from duquant.modules.language_model import LanguageModel
from duquant.run_description import CONTENT, RunDescription, compare_runs
from duquant.run_lock import LOCK_FILE, RunLock

RUN_FILE = "run.json"


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete configuration of a fit into its run directory."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``; validation keeps the one it was started from."""
        if stage == "fit" and isinstance(pl_module, LanguageModel):
            config = self.config.clone()
            config["ckpt_path"] = None  # where a run was continued from is no part of it
            config.pop("json")  # nor how its results are printed
            text = self.parser.dump(config, skip_none=False)
            path = pl_module.output_dir / "config.yaml"
            write_durably(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class RequireRunDirectory(Callback):
    """Ends a fit whose directory is removed under it, instead of filling half of a new one."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look for the directory after every step, before a block's end writes into it.

        Raises:
            ValueError: if it is gone, naming it.
        """
        _require_run_file(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look once more before the checkpoint is written."""
        _require_run_file(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say so as well where a file that is gone was missed first."""
        if isinstance(exception, Exception):
            _require_run_file(trainer, pl_module)


def describe_run(model: LanguageModel, data: CalibrationDataModule | None) -> dict[str, Any]:
    """What decides a run's numbers; ``data=None`` leaves the calibration out."""
    description: dict[str, Any] = {
        "model": _describe_model(model.decoder),
        "recipe": model.recipe.to_dict(),
    }
    if data is not None:
        description["data"] = data.description()
    return description


def prepare_fit(
    model: LanguageModel,
    data: CalibrationDataModule,
    ckpt_path: str | None,
    *,
    is_owner: bool = True,
    lock: RunLock | None = None,
) -> bool:
    """Check everything that can be checked early, then claim the run directory.

    An unfinished run of exactly this configuration is continued, also without ``--ckpt_path``.

    Args:
        model: the model, already inspected by its own ``__init__``.
        data: the texts, which are tokenized here.
        ckpt_path: what the user gave.
        is_owner: whether this process checks and claims the directory, as one of many does.
        lock: what the owner takes before it writes; it is up to the caller to release it.

    Returns:
        Whether to continue from the directory's checkpoint.

    Raises:
        ValueError: naming what does not fit and what would.
    """
    if data.calibration not in CORPUS_NAMES:
        require_source(data.calibration)
    _require_fitting_texts(model.decoder, data)
    model.run_description = describe_run(model, data)
    if is_owner:
        _require_own_checkpoint(model, ckpt_path)
        _claim_directory(model, data, lock)
    return ckpt_path is None and last_checkpoint(model.output_dir).is_file()


def _claim_directory(
    model: LanguageModel, data: CalibrationDataModule, lock: RunLock | None
) -> None:
    _require_own_directory(model)
    if not is_finished(model):
        require_finite_weights(model.decoder.checkpoint, model.decoder.dtype)
        require_room(model, data)
    if lock is not None:
        lock.acquire()
        _require_own_directory(model)  # nobody changes it any more
    write_json(model.output_dir / RUN_FILE, model.run_description)


def _require_own_directory(model: LanguageModel) -> None:
    directory, run_file = model.output_dir, model.output_dir / RUN_FILE
    if run_file.is_file():
        differences = compare_runs(read_json(run_file, RunDescription), model.run_description)
        if differences:
            raise ValueError(
                f"{directory} belongs to another run ({'; '.join(differences)}); choose another "
                f"--output_dir"
            )
    elif directory.is_dir():
        begun = {LOCK_FILE, partial(run_file).name}  # of a run that was killed as it began
        if any(file.name not in begun for file in directory.iterdir()):
            raise ValueError(f"{directory} is not empty and not a run; choose another --output_dir")
    elif directory.exists():
        raise ValueError(f"{directory} is a file; choose another --output_dir")


def _require_own_checkpoint(model: LanguageModel, ckpt_path: str | None) -> None:
    if ckpt_path in (None, "last"):
        return
    own, given = last_checkpoint(model.output_dir), Path(str(ckpt_path))
    if given.is_file() and given.resolve() == own.resolve():
        return
    stored = DurableCheckpointIO().load_checkpoint(given)["duquant_run"]
    differences = compare_runs(stored, model.run_description)
    reason = f" ({'; '.join(differences)})" if differences else ""
    raise ValueError(f"{given} is the checkpoint of another run{reason}; this one's is {own}")


def is_finished(model: LanguageModel) -> bool:
    """Whether the run directory holds all of this run: every block, and its measurement."""
    return model.directory.is_complete and (model.output_dir / "summary.json").is_file()


def prepare_validation(
    model: LanguageModel, data: CalibrationDataModule, lock: RunLock | None = None
) -> None:
    """Check early what validation needs.

    Args:
        model: the model, already inspected by its own ``__init__``.
        data: the texts, which are tokenized here.
        lock: taken before anything is measured; it is up to the caller to release it.

    Raises:
        ValueError: naming what is missing or of another run.
    """
    run_file = model.output_dir / RUN_FILE
    if not data.validation:
        raise ValueError(
            "data.validation is empty, so there is nothing to measure: name corpora, "
            "--data.validation '{mine: my_test.txt}'"
        )
    if not run_file.is_file():
        raise ValueError(
            f"{model.output_dir} holds no run: run fit first, or give its --output_dir"
        )
    model.run_description = describe_run(model, None)
    differences = compare_runs(read_json(run_file, RunDescription), model.run_description)
    if differences:
        raise ValueError(f"{model.output_dir} belongs to another run ({'; '.join(differences)})")
    if lock is not None:
        lock.acquire()
    _require_fitting_texts(model.decoder, data, calibration=False)


def _require_fitting_texts(
    decoder: Decoder, data: CalibrationDataModule, *, calibration: bool = True
) -> None:
    if data.sequence_length > decoder.max_positions:
        raise ValueError(
            f"data.sequence_length is {data.sequence_length}, but the model has "
            f"{decoder.max_positions} positions"
        )
    if calibration:
        decoder.require_windows(data.calibration_windows(), data.tokenizer)
    for name in data.validation:
        decoder.require_windows(data.corpus_windows(name), data.tokenizer)
    require_matching_vocabulary(
        data.tokenizer, int(decoder.config.vocab_size), data.tokenizer_source
    )


def _require_run_file(trainer: Trainer, model: LightningModule) -> None:
    assert isinstance(model, LanguageModel)
    if trainer.is_global_zero and not (model.output_dir / RUN_FILE).is_file():
        raise ValueError(
            f"{model.output_dir} was removed or emptied while the run wrote into it; remove "
            f"what is left of it, and the same command starts anew"
        )


def _describe_model(decoder: Decoder) -> dict[str, Any]:
    return {
        "type": decoder.config.model_type,
        "weights": decoder.checkpoint.digest(),
        CONTENT: content_digest(decoder.checkpoint),
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "num_blocks": decoder.num_blocks,
    }
