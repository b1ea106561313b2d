"""Progress of the whole job: block, epoch, LWC loss and the time that is left.

On a terminal one bar spans all blocks, so its ETA is that of the job. Elsewhere (a log file, a
batch queue) every finished block prints one line.
"""

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import Progress, TaskID

from callbacks.block_events import BlockObserver, BlockRecord
from duquant.model.site_report import SiteReport
from duquant.modules.language_model import LanguageModel
from duquant.progress_bar import clock, progress_bar
from duquant.terminal import say


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
        self._first_block = int(pl_module.block_index)
        steps = pl_module.num_blocks * pl_module.epochs_per_block
        if not pl_module.is_calibrated:
            self._say(_beginning(trainer, pl_module))
        self._open("calibrating", steps, self._first_block * pl_module.epochs_per_block)

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
        epoch = trainer.current_epoch % pl_module.epochs_per_block + 1
        done = trainer.current_epoch + (batch_idx + 1) / max(1, int(self.total_train_batches))
        loss = f", LWC loss {float(outputs['loss']):.3g}" if outputs and "loss" in outputs else ""
        block = f"block {int(pl_module.block_index) + 1}/{pl_module.num_blocks}"
        self._describe(f"{block}, epoch {epoch}/{pl_module.epochs_per_block}{loss}")
        self._bar.update(self._task, completed=done)

    def on_block_finished(
        self, trainer: Trainer, model: LanguageModel, record: BlockRecord
    ) -> None:
        """Without a terminal: one line per block. Everywhere: what is wrong with the block."""
        block, error = f"block {record.index + 1}/{model.num_blocks}", _error(record)
        if record.complaint:
            self._say(f"{block}: {record.complaint}")
        if self._bar is not None:
            self._describe(f"{block} finished{error}")
            return
        done = record.index + 1 - self._first_block
        elapsed = time.monotonic() - self._started
        left = elapsed / done * (model.num_blocks - record.index - 1)
        losses = record.lwc_losses
        loss = f", LWC loss {losses[0]:.4g} -> {losses[-1]:.4g}" if losses else ""
        skipped = f", {record.skipped_steps} steps skipped" if record.skipped_steps else ""
        self._say(
            f"{block} finished in {record.seconds:.1f} s"
            f"{loss}{error}{skipped}; {clock(elapsed)} elapsed, about {clock(left)} left"
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
    block = f"block {int(model.block_index) + 1}/{model.num_blocks}"
    return f"continuing at {block} in {model.output_dir}"
