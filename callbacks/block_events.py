"""What can be watched: a block is entered, a block is finished.

:class:`~callbacks.block_progression.BlockProgression` announces both to every callback of the
trainer that is a :class:`BlockObserver`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from duquant.atomic_files import write_json
from duquant.checksum import check_values, with_checksum
from duquant.json_files import read_json
from duquant.model.massive_tokens import MassiveSite
from duquant.model.site_report import SiteReport
from duquant.modules.language_model import LanguageModel
from duquant.reporting.run_files import BlockEntry

UNRECORDED = "delete it: the run goes on, and its summary lacks this block"


@dataclass
class BlockRecord:
    """What is worth remembering of one block's calibration, or of the whole model's distillation.

    Attributes:
        index: the block; behind the last one, the whole model.
        lwc_losses: mean loss of every epoch; empty where nothing learned.
        skipped_steps: steps left out because a loss or gradient was not finite.
        seconds: time spent on it, interruptions not counted.
        peak_memory_bytes: largest resident memory of the process so far.
        sites: ``peak_before`` and ``peak_after`` the transform, by site, and the ``condition``
            number of a transform that was trained.
        relative_error: what quantization costs it (:mod:`duquant.model.block_error`); ``None`` if
            that was not measured or is not finite.
        complaint: what loses too much and the remedy, in words; empty if nothing does.
        damping: where rounding needed more damping than the recipe's, in words; empty if nowhere.
        site_errors: the error that each site causes alone (``measure_sites`` there), weights
            rounded to nearest.
        massive_tokens: tokens many times larger than others (:mod:`duquant.model.massive_tokens`).
    """

    index: int
    lwc_losses: list[float] = field(default_factory=list)
    skipped_steps: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    sites: dict[str, dict[str, float]] = field(default_factory=dict)
    relative_error: float | None = None
    complaint: str = ""
    damping: str = ""
    site_errors: dict[str, float] = field(default_factory=dict)
    massive_tokens: list[MassiveSite] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the first and last epoch's loss beside the curve."""
        first, last = (self.lwc_losses[0], self.lwc_losses[-1]) if self.lwc_losses else (None, None)
        return {**asdict(self), "lwc_loss_first": first, "lwc_loss_last": last}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BlockRecord":
        """Undo :meth:`to_dict`, whatever else another version wrote down."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    @staticmethod
    def path(output_dir: Path, index: int) -> Path:
        """File of block ``index``'s record."""
        return output_dir / "blocks" / f"block_{index:05d}.json"

    def save(self, output_dir: Path) -> None:
        """Write the record into the run directory."""
        write_json(self.path(output_dir, self.index), with_checksum(self.to_dict()))

    @classmethod
    def load(cls, path: Path) -> "BlockRecord":
        """Read one record.

        Raises:
            ValueError: if it is damaged, naming the file and the remedy.
        """
        try:
            return cls.from_dict(check_values(read_json(path, BlockEntry), path))
        except ValueError as error:
            raise ValueError(f"{error}; {UNRECORDED}") from error

    @classmethod
    def load_all(cls, output_dir: Path, num_blocks: int) -> list["BlockRecord"]:
        """Records of all finished blocks, in order.

        Raises:
            ValueError: if one is damaged, naming the file and the remedy.
        """
        paths = [cls.path(output_dir, index) for index in range(num_blocks)]
        return [cls.load(path) for path in paths if path.is_file()]


class BlockObserver(Callback):
    """A callback that is told when blocks come and go."""

    def on_block_entered(
        self, trainer: Trainer, model: LanguageModel, index: int, reports: dict[str, SiteReport]
    ) -> None:
        """Block ``index`` is smoothed, rotated and ready to train."""

    def on_block_finished(
        self, trainer: Trainer, model: LanguageModel, record: BlockRecord
    ) -> None:
        """A block is packed, its file may still be being written; its modules are still there."""


def observers_of(trainer: Trainer) -> list[BlockObserver]:
    """The callbacks of a trainer that are told."""
    return [callback for callback in trainer.callbacks if isinstance(callback, BlockObserver)]  # type: ignore[attr-defined]
