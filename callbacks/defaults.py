"""What every run gets: its callbacks, its logger and its checkpoint format."""

from pathlib import Path

from lightning import Callback

from callbacks.block_progression import BlockProgression
from callbacks.checkpointing import LastCheckpoint
from callbacks.interruption import Interruption
from callbacks.known_full_precision import KnownFullPrecision
from callbacks.preflight import Preflight
from callbacks.progress import CalibrationProgress
from callbacks.run_directory import RequireRunDirectory
from callbacks.run_summary import RunSummary
from callbacks.tensorboard_logger import RunLogger
from callbacks.tensorboard_views import TensorBoardViews
from duquant.write_behind import WriteBehind


def default_callbacks(
    output_dir: Path, *, with_progress: bool = True, with_checkpoints: bool = True
) -> list[Callback]:
    """Callbacks of a run directory, in the order they act at an epoch's end."""
    writer = WriteBehind()
    progress = [CalibrationProgress()] if with_progress else []
    checkpoints = [LastCheckpoint(output_dir, writer)] if with_checkpoints else []
    return [
        RequireRunDirectory(),
        KnownFullPrecision(),
        Preflight(output_dir, writer=writer),
        *progress,
        Interruption(),
        BlockProgression(writer),
        TensorBoardViews(),
        RunSummary(),
        *checkpoints,
    ]


def default_logger(output_dir: Path) -> RunLogger:
    """TensorBoard in the run directory."""
    return RunLogger(output_dir)
