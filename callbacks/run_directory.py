"""The run directory: what is checked before any long work begins, and whose directory it is.

config.yaml      the command's complete configuration; `validate -c` reads it
run.json         what the run is about: model, recipe, data (fingerprints, no paths)
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

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from callbacks.checkpointing import DurableCheckpointIO, last_checkpoint
from callbacks.preflight import require_room
from duquant.data.corpora import CORPUS_NAMES, require_source
from duquant.data.datamodule import CalibrationDataModule
from duquant.durable import write_durably, write_json
from duquant.json_files import read_json
from duquant.model.decoder import Decoder
from duquant.modules.language_model import LanguageModel
from duquant.modules.run_description import RunDescription, compare_runs

RUN_FILE = "run.json"


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete configuration of a fit into its run directory."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``; validation keeps the one it was started from."""
        if stage == "fit" and isinstance(pl_module, LanguageModel):
            config = self.config.clone()
            config["ckpt_path"] = None  # where a run was continued from is no part of it
            text = self.parser.dump(config, skip_none=False)
            path = pl_module.output_dir / "config.yaml"
            write_durably(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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
) -> bool:
    """Check everything that can be checked early, then claim the run directory.

    An unfinished run of exactly this configuration is continued, also without ``--ckpt_path``.

    Args:
        model: the model, already inspected by its own ``__init__``.
        data: the texts, which are tokenized here.
        ckpt_path: what the user gave.
        is_owner: whether this process checks and claims the directory, as one of many does.

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
        _claim_directory(model, data)
    return ckpt_path is None and last_checkpoint(model.output_dir).is_file()


def _claim_directory(model: LanguageModel, data: CalibrationDataModule) -> None:
    run_file = model.output_dir / RUN_FILE
    if run_file.is_file():
        differences = compare_runs(read_json(run_file, RunDescription), model.run_description)
        if differences:
            raise ValueError(
                f"{model.output_dir} belongs to another run ({'; '.join(differences)}); choose "
                f"another --output_dir"
            )
    elif model.output_dir.is_dir() and any(model.output_dir.iterdir()):
        raise ValueError(
            f"{model.output_dir} is not empty and not a run; choose another --output_dir"
        )
    elif model.output_dir.exists() and not model.output_dir.is_dir():
        raise ValueError(f"{model.output_dir} is a file; choose another --output_dir")
    if not is_finished(model):
        require_room(model, data)
    write_json(run_file, model.run_description)


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


def prepare_validation(model: LanguageModel, data: CalibrationDataModule) -> None:
    """Check early what validation needs.

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
        decoder.require_windows(data.calibration_windows())
    for name in data.validation:
        decoder.require_windows(data.corpus_windows(name))


def _describe_model(decoder: Decoder) -> dict[str, Any]:
    return {
        "type": decoder.config.model_type,
        "weights": decoder.checkpoint.digest(),
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "num_blocks": decoder.num_blocks,
    }
