"""Progress of the whole job: block, epoch, LWC loss and the time that is left.

On a terminal one bar spans all blocks, so its ETA is that of the job. Elsewhere (a log file, a
batch queue) every finished block prints one line.
"""

import math
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import Progress, TaskID

from callbacks.block_events import BlockObserver, BlockRecord
from callbacks.checkpointing import is_cut_short
from duquant.model.site_report import SiteReport
from duquant.modules.language_model import LanguageModel
from duquant.progress_bar import clock, progress_bar
from duquant.terminal import say

SECONDS_BETWEEN_LOSSES = 0.5
"""To know a loss the host waits for the device; until then the bar shows the one before."""


class CalibrationProgress(BlockObserver, ProgressBar):
    """A bar on terminals, plain lines elsewhere.

    Args:
        console: where to print (default: standard error).
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = 0.0
        self._loss, self._loss_is_of = 0.0, -math.inf
        self._first_block = 0
        self._is_enabled = True

    def disable(self) -> None:
        """Print nothing from now on."""
        self._is_enabled = False

    def enable(self) -> None:
        """Print again."""
        self._is_enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        say(" ".join(map(str, args)), self.console)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar of the fit."""
        assert isinstance(pl_module, LanguageModel)
        self._started = time.monotonic()
        self._first_block = pl_module.block_index
        work = _work(pl_module, pl_module.first_epoch(pl_module.num_turns))
        if not pl_module.is_calibrated:
            self._say(_beginning(trainer, pl_module))
        done = _work(pl_module, pl_module.first_epoch(self._first_block))
        self._open("calibrating", work, done)

    def on_block_entered(
        self, trainer: Trainer, model: LanguageModel, index: int, reports: dict[str, SiteReport]
    ) -> None:
        """Name the new block."""
        self._describe(f"block {index + 1}/{model.num_blocks} rotated")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by one step."""
        assert isinstance(pl_module, LanguageModel)
        if self._bar is None or self._task is None:
            return
        turn = pl_module.block_index
        first, behind = _epochs(pl_module, turn)
        epoch = trainer.current_epoch - first + 1
        part = (batch_idx + 1) / max(1, int(self.total_train_batches))
        done = _work(pl_module, trainer.current_epoch + part)
        self._bar.update(self._task, completed=done)
        loss = ""
        if outputs and "loss" in outputs:
            loss = f", {_loss_name(pl_module, turn)} {self._recent_loss(pl_module):.3g}"
        self._describe(f"{_turn(pl_module, turn)}, epoch {epoch}/{behind - first}{loss}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without a terminal: a line for every epoch of the whole model, which takes long."""
        assert isinstance(pl_module, LanguageModel)
        if pl_module.is_distilling and self._bar is None and not is_cut_short(trainer):
            first, behind = _epochs(pl_module, pl_module.block_index)
            done = trainer.current_epoch - first + 1
            elapsed = time.monotonic() - self._started
            self._say(f"whole model, epoch {done}/{behind - first}; {clock(elapsed)} elapsed")

    def on_block_finished(
        self, trainer: Trainer, model: LanguageModel, record: BlockRecord
    ) -> None:
        """Without a terminal: one line per block. Everywhere: what is wrong with the block."""
        self._loss_is_of = -math.inf
        block, error = _turn(model, record.index), _error(record)
        if record.complaint:
            self._say(f"{block}: {record.complaint}")
        if self._bar is not None:
            self._describe(f"{block} finished{error}")
            return
        done = record.index + 1 - self._first_block
        elapsed = time.monotonic() - self._started
        left = elapsed / done * max(0, model.num_blocks - record.index - 1)
        losses = record.lwc_losses
        name = _loss_name(model, record.index)
        loss = f", {name} {losses[0]:.4g} -> {losses[-1]:.4g}" if losses else ""
        skipped = f", {record.skipped_steps} steps skipped" if record.skipped_steps else ""
        more = ", and the whole model's turn" if model.distillation is not None else ""
        self._say(
            f"{block} finished in {record.seconds:.1f} s"
            f"{loss}{error}{skipped}; {clock(elapsed)} elapsed, about {clock(left)} left"
            f"{more if record.index < model.num_blocks else ''}"
        )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar of the validation."""
        assert isinstance(pl_module, LanguageModel)
        batches = sum(int(count) for count in trainer.num_val_batches)
        self._started = time.monotonic()
        self._open("perplexity", batches * pl_module.num_blocks, 0)
        pl_module.on_block_evaluated = self._on_block_evaluated
        corpora = trainer.datamodule.validation  # type: ignore[attr-defined]
        measured = {v for corpus in corpora for v in pl_module.measured_variants(corpus)}
        names = ", ".join(v.replace("_", " ") for v in pl_module.variants if v in measured)
        self._say(f"measuring perplexity: {names}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar."""
        self._close()

    def _open(self, what: str, total: float, completed: float) -> None:
        self._close()
        if not (self.console.is_terminal and self._is_enabled and self.trainer.is_global_zero):
            return
        self._bar = progress_bar(self.console)
        self._bar.start()
        self._task = self._bar.add_task(what, total=total, completed=int(completed))

    def _recent_loss(self, model: LanguageModel) -> float:
        now = time.monotonic()
        if now - self._loss_is_of >= SECONDS_BETWEEN_LOSSES:
            self._loss, self._loss_is_of = float(model.learner.step_loss), now
        return self._loss

    def _say(self, line: str) -> None:
        if self._is_enabled and self.trainer.is_global_zero:
            say(line, self.console)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _describe(self, text: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)

    def _on_block_evaluated(self, index: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1, description=f"perplexity, block {index + 1}")


def _error(record: BlockRecord) -> str:
    return "" if record.relative_error is None else f", error {record.relative_error:.1%}"


def _beginning(trainer: Trainer, model: LanguageModel) -> str:
    if trainer.ckpt_path is None:
        return f"calibrating {model.num_blocks} blocks in {model.output_dir}"
    return f"continuing at {_turn(model, model.block_index)} in {model.output_dir}"


def _work(model: LanguageModel, epochs: float) -> float:
    """Epochs in units of one epoch of one block; one of the whole model takes all blocks."""
    of_blocks = model.first_epoch(model.num_blocks)
    return min(epochs, of_blocks) + max(0.0, epochs - of_blocks) * model.num_blocks


def _epochs(model: LanguageModel, turn: int) -> tuple[int, int]:
    """First epoch of a turn and of the next."""
    return model.first_epoch(turn), model.first_epoch(turn + 1)


def _turn(model: LanguageModel, index: int) -> str:
    return f"block {index + 1}/{model.num_blocks}" if index < model.num_blocks else "whole model"


def _loss_name(model: LanguageModel, index: int) -> str:
    return "LWC loss" if index < model.num_blocks else "distillation loss"
