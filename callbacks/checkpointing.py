"""Checkpoints that survive any interruption.

One file, ``checkpoints/last.ckpt``, is replaced at the end of every epoch: written under a
temporary name, flushed, renamed. It is read as data only (``weights_only=True``), so a checkpoint
cannot run code.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from duquant.durable import write_durably


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically and refuses damaged ones by name."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint in one step."""
        write_durably(Path(path), lambda temporary: torch.save(checkpoint, temporary))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint as plain data.

        Raises:
            ValueError: if it is missing, damaged, or holds anything but tensors and plain values.
        """
        if not Path(path).is_file():
            raise ValueError(f"there is no checkpoint {path}")
        try:
            loaded = torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{path} is damaged or not a checkpoint of duquant ({type(error).__name__})"
            ) from error
        if not isinstance(loaded, dict) or "duquant_run" not in loaded:
            raise ValueError(f"{path} is not a checkpoint of duquant")
        return loaded


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/last.ckpt`` of a run directory up to date, epoch by epoch.

    Args:
        output_dir: the run directory.
    """

    def __init__(self, output_dir: Path) -> None:
        super().__init__(
            dirpath=output_dir / "checkpoints",
            filename=self.CHECKPOINT_NAME_LAST,
            save_top_k=1,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )


def last_checkpoint(output_dir: Path) -> Path:
    """Where a run directory keeps its checkpoint."""
    return output_dir / "checkpoints" / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}.ckpt"
