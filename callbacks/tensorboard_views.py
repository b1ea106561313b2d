"""What TensorBoard shows of a calibration: curves, histograms and the paper's outlier pictures.

| tag | shows |
|---|---|
| ``lwc/loss`` | loss of every step, over all blocks (logged by the model) |
| ``distillation/loss`` | the same of the whole model's turn |
| ``lwc_blocks/NN`` | mean loss of every epoch of one block |
| ``lwc/skipped_steps`` | steps left out because something was not finite, per block |
| ``peaks/SITE/before`` and ``after`` | largest activation of each site, per block |
| ``clip/LINEAR/high`` and ``low`` | histograms of learned clip factors, per block |
| ``relative_error`` | what quantization costs every block, of what the block adds |
| ``cost/seconds_per_block``, ``cost/peak_memory_gb`` | what a block cost |
| ``outliers/block_NN`` | channel magnitudes of every site, stage by stage |
| ``perplexity/…`` | measured at the end (logged by the model), and in HParams |
"""

import io
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from callbacks.block_events import BlockObserver, BlockRecord
from callbacks.outlier_picture import draw_outliers
from duquant.atomic_files import write_durably
from duquant.model.site_report import SiteReport
from duquant.modules.language_model import LanguageModel


class TensorBoardViews(BlockObserver):
    """Writes a calibration's views to TensorBoard and its pictures to the run directory."""

    def on_block_entered(
        self, trainer: Trainer, model: LanguageModel, index: int, reports: dict[str, SiteReport]
    ) -> None:
        """Peaks and picture of the new block."""
        if not trainer.is_global_zero:
            return
        picture = draw_outliers(reports, f"block {index}")
        path = model.output_dir / "blocks" / f"outliers_{index:05d}.png"
        write_durably(path, lambda temporary: temporary.write_bytes(picture))
        writer = _writer(trainer)
        if writer is None:
            return
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        writer.add_image(f"outliers/block_{index:02d}", pixels, index, dataformats="HWC")
        for site, report in reports.items():
            writer.add_scalar(f"peaks/{site}/before", report.peak_before, index)
            writer.add_scalar(f"peaks/{site}/after", report.peak_after, index)

    def on_block_finished(
        self, trainer: Trainer, model: LanguageModel, record: BlockRecord
    ) -> None:
        """Curve, clip factors and cost of the finished block."""
        writer = _writer(trainer)
        if writer is None:
            return
        if record.index >= model.num_blocks:
            writer.add_scalar("distillation/skipped_steps", record.skipped_steps, 0)
            return
        for epoch, loss in enumerate(record.lwc_losses):
            writer.add_scalar(f"lwc_blocks/{record.index:02d}", loss, epoch)
        for linear, (high, low) in model.current_block.clip_factors().items():
            writer.add_histogram(f"clip/{linear}/high", high, record.index)
            writer.add_histogram(f"clip/{linear}/low", low, record.index)
        writer.add_scalar("lwc/skipped_steps", record.skipped_steps, record.index)
        if record.relative_error is not None:
            writer.add_scalar("relative_error", record.relative_error, record.index)
        writer.add_scalar("cost/seconds_per_block", record.seconds, record.index)
        writer.add_scalar("cost/peak_memory_gb", record.peak_memory_bytes / 1e9, record.index)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The recipe and its perplexities, for the HParams tab."""
        if not isinstance(pl_module, LanguageModel):
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                metrics = {
                    f"hparams/{corpus}/{variant}": value
                    for corpus, values in pl_module.perplexities.items()
                    for variant, value in values.items()
                }
                logger.log_hyperparams(_flat(pl_module.recipe.to_dict()), metrics)
                logger.save()


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
