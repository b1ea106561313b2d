"""What loggers show of a calibration: curves, histograms and the paper's outlier pictures.

| name | shows |
|---|---|
| ``lwc/loss`` | loss of every step, over all blocks (logged by the model) |
| ``distillation/loss`` | the same of the whole model's turn |
| ``lwc/skipped_steps`` | steps left out because something was not finite, per block |
| ``lwc/last_loss`` | mean loss of the last epoch, per block |
| ``lwc_by_block/NN`` | mean loss of every epoch of one block |
| ``block_error/relative`` | what quantization costs every block, of what the block adds |
| ``peaks_before/SITE``, ``peaks_after/SITE`` | largest activation of each site, per block |
| ``cost/seconds``, ``cost/peak_memory_gb`` | what a block cost |
| ``clip_high/LINEAR``, ``clip_low/LINEAR`` | histograms of learned clip factors, per block |
| ``outliers/block_NN`` | channel magnitudes of every site, stage by stage |
| ``perplexity/…`` | measured at the end (logged by the model), and in HParams |

TensorBoard has all of it; its steps are blocks where a number is one of a block. Other loggers
(``--trainer.logger``) have one axis of steps, the optimizer's: they get the same numbers beside
``block``, and the recipe, but no histograms and pictures.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image

from callbacks.block_events import BlockObserver, BlockRecord
from callbacks.outlier_picture import draw_outliers
from duquant.atomic_files import write_durably
from duquant.model.site_report import SiteReport
from duquant.modules.language_model import LanguageModel
from duquant.write_behind import WriteBehind


class TensorBoardViews(BlockObserver):
    """Tells loggers what a calibration does, and writes its pictures to the run directory."""

    def __init__(self) -> None:
        self._artist = WriteBehind()

    def on_block_entered(
        self, trainer: Trainer, model: LanguageModel, index: int, reports: dict[str, SiteReport]
    ) -> None:
        """Picture of the new block, drawn while the block learns."""
        if not trainer.is_global_zero:
            return
        self._artist.wait()
        self._artist.submit(partial(_draw, reports, index, _picture(model, index)))

    def on_block_finished(
        self, trainer: Trainer, model: LanguageModel, record: BlockRecord
    ) -> None:
        """Curve, peaks, clip factors and cost of the finished block."""
        if not trainer.is_global_zero:
            return
        self._artist.wait()  # before a checkpoint says that the block is finished
        if record.index >= model.num_blocks:
            _log_whole_model(trainer, record)
            return
        for logger in trainer.loggers:
            _log_block(logger, record, trainer.global_step)
        writer = _writer(trainer)
        if writer is None:
            return
        pixels = np.asarray(Image.open(_picture(model, record.index)).convert("RGB"))
        writer.add_image(
            f"outliers/block_{record.index:02d}", pixels, record.index, dataformats="HWC"
        )
        for linear, (high, low) in model.current_block.clip_factors().items():
            writer.add_histogram(f"clip_high/{linear}", high, record.index)
            writer.add_histogram(f"clip_low/{linear}", low, record.index)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the picture of a block that a stopped fit has not finished."""
        self._artist.wait()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let the picture be finished while the run still has its directory."""
        self._artist.end(exception)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The recipe and its perplexities, for the HParams tab."""
        if not isinstance(pl_module, LanguageModel) or not trainer.is_global_zero:
            return
        recipe = _flat(pl_module.recipe.to_dict())
        metrics = {
            f"hparams/{corpus}/{variant}": value
            for corpus, values in pl_module.perplexities.items()
            for variant, value in values.items()
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(recipe, metrics)
            else:
                logger.log_hyperparams(recipe)
            logger.save()


def _picture(model: LanguageModel, index: int) -> Path:
    return model.output_dir / "blocks" / f"outliers_{index:05d}.png"


def _draw(reports: dict[str, SiteReport], index: int, path: Path) -> None:
    """Draw a block's picture and write it; TensorBoard gets it from the run's own thread."""
    picture = draw_outliers(reports, f"block {index}")
    write_durably(path, lambda temporary: temporary.write_bytes(picture))


def _log_whole_model(trainer: Trainer, record: BlockRecord) -> None:
    numbers = {
        "distillation/skipped_steps": float(record.skipped_steps),
        "distillation/seconds": record.seconds,
    }
    for logger in trainer.loggers:
        logger.log_metrics(numbers, trainer.global_step)


def _log_block(logger: Logger, record: BlockRecord, step: int) -> None:
    """Tell a logger the numbers of a block; TensorBoard has blocks and epochs as steps."""
    numbers = block_numbers(record)
    curve = f"lwc_by_block/{record.index:02d}"
    if isinstance(logger, TensorBoardLogger):
        logger.log_metrics(numbers, record.index)
        for epoch, loss in enumerate(record.lwc_losses):
            logger.log_metrics({curve: loss}, epoch)
    else:
        logger.log_metrics({"block": record.index, **numbers}, step)


def block_numbers(record: BlockRecord) -> dict[str, float]:
    """What is told of a finished block, by the names it has in every logger."""
    numbers: dict[str, float] = {
        "lwc/skipped_steps": record.skipped_steps,
        "cost/seconds": record.seconds,
        "cost/peak_memory_gb": record.peak_memory_bytes / 1e9,
    }
    for moment in ("before", "after"):
        for site, values in record.sites.items():
            numbers[f"peaks_{moment}/{site}"] = values[f"peak_{moment}"]
    if record.lwc_losses:
        numbers["lwc/last_loss"] = record.lwc_losses[-1]
    if record.relative_error is not None:
        numbers["block_error/relative"] = record.relative_error
    return numbers


def _writer(trainer: Trainer) -> Any:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment
    return None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value) if value is None else value
    return flat
