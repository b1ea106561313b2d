"""Checkpoints that survive any interruption.

One file, ``checkpoints/last.ckpt``, is replaced at the end of every epoch: written under a
temporary name, flushed, renamed, with its checksum in it. It is read as data only
(``weights_only=True``), so a checkpoint cannot run code.

Only the end of a *whole* epoch is a state from which a run continues exactly: Lightning restores
how many steps were done, and then begins the next epoch. What stops a fit within an epoch
(``max_steps``, ``max_time``, ``should_stop``, an interruption) leaves the checkpoint before it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from duquant.atomic_files import write_durably
from duquant.checksum import check_checkpoint, set_checkpoint_checksum
from duquant.modules.language_model import LanguageModel
from duquant.preflight.memory import LARGEST_COPIED_CHECKPOINT
from duquant.write_behind import WriteBehind

REQUEUED = "hpc_ckpt_"
"""How Lightning names what it saves, at any moment, when SLURM is about to end a job."""
READ_NOTHING = (TensorBoardLogger, CSVLogger)
"""Loggers that do not upload checkpoints."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically and refuses damaged ones by name.

    Attributes:
        writer: who writes ``behind``; every other checkpoint is on disk when saving returns.
        behind: the run's own checkpoint, for which the run waits before it says that it is there.
    """

    writer: WriteBehind | None = None
    behind: Path | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint in one step; not that of a requeued job, which ``last`` continues.

        One that is written behind is copied first, when all that came before it is on disk. A
        large one is written at once instead: its copy would cost more memory than waiting is worth.
        """
        path = Path(path)
        if path.name.startswith(REQUEUED):
            return
        if self.writer is not None:
            self.writer.wait()
        is_small = _num_bytes(checkpoint) <= LARGEST_COPIED_CHECKPOINT
        if self.writer is None or path != self.behind or not is_small:
            _write(path, partial(torch.save, checkpoint))
            return
        copy = BytesIO()
        torch.save(checkpoint, copy)
        self.writer.submit(
            partial(_write, path, lambda temporary: temporary.write_bytes(copy.getbuffer()))
        )

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint as plain data.

        Raises:
            ValueError: if it is missing, damaged, of the middle of an epoch, or holds anything but
                tensors and plain values.
        """
        if not Path(path).is_file():
            raise ValueError(f"there is no checkpoint {path}")
        check_checkpoint(Path(path))
        try:
            loaded = torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{path} is damaged or not a checkpoint of duquant ({type(error).__name__})"
            ) from error
        if not isinstance(loaded, dict) or "duquant_run" not in loaded:
            raise ValueError(f"{path} is not a checkpoint of duquant")
        if _is_within_epoch(loaded):
            raise ValueError(
                f"{path} was written in the middle of an epoch, by an earlier release: the run "
                f"cannot be continued exactly; start anew in another --output_dir"
            )
        return loaded


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/last.ckpt`` of a run directory up to date, epoch by epoch.

    Args:
        output_dir: the run directory.
        writer: writes it behind; it is up to others to wait for that at the end of a fit.
    """

    def __init__(self, output_dir: Path, writer: WriteBehind | None = None) -> None:
        self._writer = writer
        super().__init__(
            dirpath=output_dir / "checkpoints",
            filename=self.CHECKPOINT_NAME_LAST,
            save_top_k=1,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let checkpoints be written behind, unless a logger may read them the moment they are."""
        super().setup(trainer, pl_module, stage)
        checkpoints = trainer.strategy.checkpoint_io
        if isinstance(checkpoints, DurableCheckpointIO):
            may_read = [each for each in trainer.loggers if not isinstance(each, READ_NOTHING)]
            checkpoints.writer = None if may_read or stage != "fit" else self._writer
            checkpoints.behind = last_checkpoint(Path(str(self.dirpath)).parent)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless the epoch was cut short."""
        if not is_cut_short(trainer):
            super().on_train_epoch_end(trainer, pl_module)


def is_cut_short(trainer: Trainer) -> bool:
    """Whether the epoch that ends now was stopped before its last step."""
    completed = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    return bool(completed < trainer.num_training_batches)


def last_checkpoint(output_dir: Path) -> Path:
    """Where a run directory keeps its checkpoint."""
    return output_dir / "checkpoints" / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}.ckpt"


def require_calibrated(model: LanguageModel) -> None:
    """Check that a fit went through all blocks, whatever may have stopped it.

    Raises:
        ValueError: saying how far it came, and how it continues.
    """
    if not model.is_calibrated:
        where = f"after {model.block_index} of {model.num_blocks} blocks"
        if model.is_distilling:
            where = "while the whole model learned"
        raise ValueError(
            f"stopped {where}; --ckpt_path last continues (trainer.max_steps counts the steps of "
            f"all commands)"
        )


def _write(path: Path, save: Callable[[Path], object]) -> None:
    def write(temporary: Path) -> None:
        save(temporary)
        set_checkpoint_checksum(temporary)

    write_durably(path, write)


def _num_bytes(saved: object) -> int:
    """Of all tensors in it."""
    if isinstance(saved, torch.Tensor):
        return saved.nbytes
    if isinstance(saved, Mapping):
        return sum(map(_num_bytes, saved.values()))
    return sum(map(_num_bytes, saved)) if isinstance(saved, (list, tuple)) else 0


def _is_within_epoch(checkpoint: dict[str, Any]) -> bool:
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    return loop.get("epoch_loop.batch_progress", {}).get("is_last_batch") is False
