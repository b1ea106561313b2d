"""TensorBoard in the run directory, whose writer does not talk over the error that ends a run.

Events are written by a thread of TensorBoard's own. What goes wrong there (no space, a directory
that is gone) is raised again where the next event is logged, and becomes the run's one message; the
thread's traceback and the last flush of a run that failed anyway would only repeat it.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger


class RunLogger(TensorBoardLogger):
    """Logs into ``tensorboard/`` of a run directory.

    Args:
        output_dir: the run directory.
    """

    def __init__(self, output_dir: Path) -> None:
        super().__init__(
            save_dir=output_dir, name="", version="tensorboard", default_hp_metric=False
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log, and let a disk's error be one: Lightning calls whatever fails unsupported values.

        Lightning adds the number of the epoch to everything; a tag of its own says nothing.
        """
        try:
            super().log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step)
        except ValueError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            raise

    def finalize(self, status: str) -> None:
        """Write what is left, as far as that is possible in a run that failed."""
        if status == "success":
            super().finalize(status)
        else:
            with suppress(OSError):
                super().finalize(status)
