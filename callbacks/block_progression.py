"""Block by block: the algorithm of DuQuant as a Trainer lives through it.

    fit starts        open the streams (or restore them), enter the current block
    enter(block)      load its weights -> full-precision targets -> smooth -> R1 P R2
    block's epochs    LWC trains against the full-precision outputs
    finish(block)     pack to disk -> its outputs are the next block's inputs -> free its weights
    distillation      the whole model has the last turn, if the recipe says so
                      (``callbacks/distillation_turn.py``)

Turns change at the *end* of an epoch: the trainer asks for the next epoch's data loader before
that epoch starts, and checkpoints are written after this callback, so a checkpoint at a boundary
already points at the next block, whose streams are already on disk. Files are written while the
next block is entered (``callbacks/boundary_files.py``).
"""

import time
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.block_events import BlockRecord, observers_of
from callbacks.boundary_files import BoundaryFiles
from callbacks.checkpointing import is_cut_short
from callbacks.data_parallel import processes_of, require_even_shares
from callbacks.distillation_turn import (
    distillation_complaint,
    enter_distillation,
    finish_distillation,
    forget_steps,
)
from callbacks.losses import log_losses
from callbacks.run_checks import peak_memory_bytes, require_finished_blocks, require_one_run
from callbacks.trainer_options import require_supported
from duquant.calibration import BlockCalibration
from duquant.data.datamodule import CalibrationDataModule
from duquant.data.streams import Streams
from duquant.model.decoder import BlockContext
from duquant.model.massive_tokens import name_massive_tokens
from duquant.modules.language_model import LanguageModel
from duquant.ops.freed_memory import return_freed_memory
from duquant.write_behind import WriteBehind


class BlockProgression(Callback):
    """Moves a :class:`LanguageModel` through its blocks within one ``Trainer.fit``.

    Args:
        writer: writes files behind (default: one of its own).
    """

    def __init__(self, writer: WriteBehind | None = None) -> None:
        self.writer = writer or WriteBehind()
        self.record = BlockRecord(0)
        self._contexts: list[BlockContext] = []
        self._calibration: BlockCalibration | None = None
        self._step_losses: list[Tensor] = []
        self._clock = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work; decide how long the fit is."""
        require_supported(trainer, stage)
        if not isinstance(pl_module, LanguageModel):
            raise ValueError("BlockProgression needs a LanguageModel")
        _, data = _parts(trainer, pl_module)
        data.processes = processes_of(trainer)
        if stage != "fit":
            return
        require_even_shares(trainer, pl_module, data)
        epochs = pl_module.first_epoch(pl_module.num_turns)
        trainer.fit_loop.max_epochs = epochs
        trainer.check_val_every_n_epoch = epochs + 1  # half a model is not worth measuring
        self.files = BoundaryFiles(pl_module, data, self.writer)

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open or restore the streams and enter the current block."""
        model, data = _parts(trainer, pl_module)
        require_one_run(trainer, model, data.processes)
        if trainer.is_global_zero:
            require_finished_blocks(model)
        if model.is_calibrated:
            return
        device = trainer.strategy.root_device
        self._contexts = model.decoder.contexts(data.sequence_length, device)
        streams = self.files.open(model, data, device)
        self._enter(trainer, model, data, streams)
        self.writer.wait()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the epoch's losses, which stay on their device until it ends."""
        model, _ = _parts(trainer, pl_module)
        if model.learns:
            self._step_losses.append(model.learner.step_loss)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the epoch; after a block's last one, finish it and enter the next.

        An epoch that was cut short counts for nothing: the fit stops, and the checkpoint before it
        continues.
        """
        model, data = _parts(trainer, pl_module)
        losses = log_losses(trainer, model, self._step_losses)
        self._step_losses = []
        if is_cut_short(trainer):
            return
        if losses:
            self.record.lwc_losses.append(sum(losses) / len(losses))
        self._count_seconds()
        if trainer.current_epoch + 1 < model.first_epoch(model.block_index + 1):
            return
        streams = self._finish(trainer, model, data)
        if not model.is_calibrated:
            self._enter(trainer, model, data, streams)
        self.files.settle(trainer, model.block_index)  # the checkpoint after this says so
        if model.is_calibrated and trainer.is_global_zero:
            model.directory.complete(model.decoder)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the streams of a finished run, once its checkpoint is written: nobody reads them."""
        model, data = _parts(trainer, pl_module)
        self.writer.wait()
        data.samples = None
        if model.is_calibrated and trainer.is_global_zero:
            self.files.streams.remove()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let what was handed over be written while the run still has its directory."""
        self.writer.end(exception)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Forget how long this process has taken: trainer.max_time is each one's own."""
        states = checkpoint["callbacks"].items()
        checkpoint["callbacks"] = {k: v for k, v in states if k.partition("{")[0] != "Timer"}

    def state_dict(self) -> dict[str, Any]:
        """The current block's record, so that its curve survives an interruption."""
        return {"record": self.record.to_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the record up again."""
        self.record = BlockRecord.from_dict(state_dict["record"])

    def _enter(
        self,
        trainer: Trainer,
        model: LanguageModel,
        data: CalibrationDataModule,
        streams: Streams | None,
    ) -> None:
        self._clock = time.perf_counter()
        index, device = model.block_index, trainer.strategy.root_device
        if self.record.index != index:
            self.record = BlockRecord(index)
        assert streams is not None
        if model.is_distilling:
            self.writer.wait()  # it reads the blocks' files
            enter_distillation(trainer, model, data, streams.full_precision, self._contexts)
            self._count_seconds()
            return
        data.samples_at_once = data.batch_size
        calibration = BlockCalibration(
            model.current_block,
            streams,
            self.files.streams.draft(index + 1),
            self._contexts[index],
            device,
            data.processes,
        )
        calibration.enter(model.decoder.load_block(index), model.generator(index))
        self._calibration, data.samples = calibration, calibration.samples
        self.record.sites = {
            name: {"peak_before": report.peak_before, "peak_after": report.peak_after}
            for name, report in calibration.reports.items()
        }
        peaks, windows = calibration.token_peaks, data.calibration_windows()
        self.record.massive_tokens = name_massive_tokens(peaks, windows, data.token_text)
        self._count_seconds()
        for observer in observers_of(trainer):
            observer.on_block_entered(trainer, model, index, calibration.reports)

    def _finish(
        self, trainer: Trainer, model: LanguageModel, data: CalibrationDataModule
    ) -> Streams | None:
        """End the current turn; returns what enters the next one, if it needs anything."""
        learner, is_distilling = model.learner, model.is_distilling
        if is_distilling:
            streams = None
            # The checkpoint of this turn must be on disk before the blocks' files change: one from
            # before the turn would begin it again, from files that hold its result.
            self.writer.wait()
            finish_distillation(trainer, model, data)
            self.record.complaint = distillation_complaint(self.record.lwc_losses)
        else:
            streams = self._finish_block(trainer, model, data)
        self._count_seconds()
        self.record.skipped_steps = int(learner.skipped_steps)
        self.record.peak_memory_bytes = peak_memory_bytes(trainer.strategy.root_device)
        if trainer.is_global_zero:
            self.files.save_record(model, self.record)
        for observer in observers_of(trainer):
            observer.on_block_finished(trainer, model, self.record)
        learner.release()
        forget_steps(trainer, learner)
        return_freed_memory()
        model.block_index += 1
        return streams

    def _finish_block(
        self, trainer: Trainer, model: LanguageModel, data: CalibrationDataModule
    ) -> Streams:
        index = model.block_index
        assert self._calibration is not None
        write = partial(self.files.write_block, model) if trainer.is_global_zero else None
        self.record.site_errors = self._calibration.site_errors()
        self.files.release_older(trainer)
        streams = self._calibration.finish(write)
        error, self.record.damping = self._calibration.error, self._calibration.damping
        for name, condition in self._calibration.conditions.items():
            self.record.sites[name]["condition"] = condition
        self.record.relative_error, self.record.complaint = error.relative, error.complaint
        self._calibration = data.samples = None  # what entered the block is no longer needed
        if index + 1 < model.num_turns:
            streams = self.files.save_streams(index + 1, streams)
        return streams

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.record.seconds += now - self._clock
        self._clock = now


def _parts(
    trainer: Trainer, pl_module: LightningModule
) -> tuple[LanguageModel, CalibrationDataModule]:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(pl_module, LanguageModel)
    assert isinstance(data, CalibrationDataModule)
    return pl_module, data
