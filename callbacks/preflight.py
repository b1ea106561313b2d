"""Before any long work: what this run will take, and whether there is room for it.

Memory and disk follow from shapes; a run that cannot fit is refused at once, with the number and an
option that helps. Time is measured on a thin block when the fit begins (see
:mod:`duquant.preflight.duration`). The estimates are printed, and kept in ``preflight.json`` for
the summary, where they stand beside what was measured.
"""

import shutil
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import torch
from lightning import LightningModule, Trainer
from rich.console import Console

from callbacks.block_events import BlockObserver, BlockRecord
from callbacks.outlier_picture import TITLES, draw_outliers
from callbacks.preflight_file import PREFLIGHT_FILE, read_preflight
from duquant.atomic_files import write_json
from duquant.checksum import with_checksum
from duquant.data.datamodule import CalibrationDataModule
from duquant.data.streams import CPU, StreamSizes
from duquant.model.site_report import SiteReport
from duquant.model.structure import SITES
from duquant.modules.language_model import LanguageModel
from duquant.ops.device_memory import free_device_bytes
from duquant.ops.process_memory import available_bytes
from duquant.preflight.disk import disk_bytes
from duquant.preflight.duration import Duration, estimate_duration
from duquant.preflight.job import Job
from duquant.preflight.memory import device_phase, host_phase
from duquant.preflight.placement import (
    holds_scores,
    require_device_room,
    size_text,
    with_streams_placed,
)
from duquant.progress_bar import clock
from duquant.terminal import say
from duquant.write_behind import WriteBehind


class Preflight(BlockObserver):
    """Prints what a run will take when it begins, and watches what it does take.

    Args:
        output_dir: the run directory.
        console: where to print (default: standard error).
        writer: writes a block's files behind; the directory is looked at behind them.
    """

    def __init__(
        self,
        output_dir: Path,
        console: Console | None = None,
        *,
        writer: WriteBehind | None = None,
    ) -> None:
        self.writer = writer or WriteBehind()
        self.path = output_dir / PREFLIGHT_FILE
        self.console = console or Console(stderr=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate what is left to do."""
        assert isinstance(pl_module, LanguageModel)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, CalibrationDataModule)
        if pl_module.is_calibrated or not trainer.is_global_zero:
            return
        job, before = describe_job(pl_module, data), _resident()
        phase, disk = host_phase(job), disk_bytes(job, clip_bytes(pl_module))
        here = data.processes.local_count
        each = f" in each of {here} processes" if here > 1 else ""
        self._say(
            f"memory: about {size_text(before + phase.num_bytes)}{each} (most of it for "
            f"{phase.name}), {size_text(before + available_bytes())} are available; "
            f"disk: about {size_text(disk)}"
        )
        self._say_of_gpu(job, trainer.strategy.root_device)
        duration = estimate_duration(
            job,
            trainer.strategy.root_device,
            blocks_left=pl_module.num_blocks - pl_module.block_index,
            picture_seconds=picture_seconds(job),
        )
        measuring = clock(duration.validation) if job.windows else "nothing"
        self._say(
            f"time: about {clock(duration.calibration)} to calibrate "
            f"({duration.per_block:.1f} s per block), {measuring} to measure"
        )
        if self.path.exists():
            read_preflight(self.path)  # before the work, not after it
        else:
            self._keep(before + phase.num_bytes, disk, duration)

    def on_block_finished(
        self, trainer: Trainer, model: LanguageModel, record: BlockRecord
    ) -> None:
        """Note the size of the run directory."""
        if trainer.is_global_zero:
            self.writer.submit(self._note_size)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note it once more, when the model is complete and nothing is tidied up yet."""
        if trainer.is_global_zero:
            self.writer.wait()
            self._note_size()

    def _note_size(self) -> None:
        if self.path.is_file():
            kept = read_preflight(self.path)
            largest = max(kept["largest_disk_bytes"], held_bytes(self.path.parent))
            write_json(
                self.path,
                with_checksum({"estimate": kept["estimate"], "largest_disk_bytes": largest}),
            )

    def _keep(self, memory: int, disk: int, duration: Duration) -> None:
        estimate = {"memory_bytes": memory, "disk_bytes": disk, "seconds": asdict(duration)}
        write_json(self.path, with_checksum({"estimate": estimate, "largest_disk_bytes": 0}))

    def _say_of_gpu(self, job: Job, device: torch.device) -> None:
        free = free_device_bytes(device)
        if free is not None:
            phase = device_phase(job)
            self._say(
                f"memory of {device}: about {size_text(phase.num_bytes)} (most of it for "
                f"{phase.name}), {size_text(free)} are free"
            )

    def _say(self, line: str) -> None:
        say(line, self.console)


def describe_streams(model: LanguageModel, data: CalibrationDataModule) -> tuple[StreamSizes, bool]:
    """Sizes of this process's streams between blocks, and whether they are held in memory."""
    decoder, samples = model.decoder, data.num_samples // data.processes.count
    sizes = StreamSizes.of(
        model.recipe, samples, data.sequence_length, decoder.hidden_size, decoder.dtype
    )
    return sizes, data.holds_in_memory(sizes)


def stream_device(model: LanguageModel, data: CalibrationDataModule) -> torch.device:
    """Whose memory the streams are held in: the GPU's if they fit there, else the host's."""
    device = torch.device(data.processes.device)
    has_memory = free_device_bytes(device) is not None
    return device if has_memory and describe_job(model, data).streams_on_gpu else CPU


def describe_job(model: LanguageModel, data: CalibrationDataModule) -> Job:
    """What of model and data decides the costs."""
    sizes, in_memory = describe_streams(model, data)
    count, device = data.processes.count, torch.device(data.processes.device)
    free = free_device_bytes(device)
    job = Job(
        decoder=model.decoder,
        recipe=model.recipe,
        streams=sizes,
        streams_in_memory=in_memory,
        batch_size=max(1, data.batch_size // count),
        windows=tuple(-(-len(data.corpus_windows(name)) // count) for name in data.validation),
        validation_chunk=data.validation_chunk,
        has_plain=model.report_round_to_nearest,
        has_full_precision=not data.validation.keys() <= model.known_full_precision.keys(),
        processes=count,
        on_gpu=free is not None,
        gradient_checkpointing=model.gradient_checkpointing,
        holds_scores=free is not None and holds_scores(model.decoder, sizes.tokens, device),
    )
    is_wanted = in_memory or data.stream_memory_gb is None
    return with_streams_placed(job, free) if is_wanted else job


def require_room(model: LanguageModel, data: CalibrationDataModule) -> None:
    """Check that memory and disk can hold the run.

    Raises:
        ValueError: with what is needed, what is there, and an option that helps.
    """
    job = describe_job(model, data)
    needed, directory = disk_bytes(job, clip_bytes(model)), model.output_dir.absolute()
    free = shutil.disk_usage(next(p for p in (directory, *directory.parents) if p.exists())).free
    missing = needed - held_bytes(directory)  # a run that continues has written some of it
    if missing > free:
        raise ValueError(
            f"the run needs about {size_text(missing)} in {model.output_dir}, but "
            f"{size_text(free)} are free there: choose another --output_dir or fewer num_samples"
        )
    device = torch.device(data.processes.device)
    require_device_room(job, free_device_bytes(device), device)
    phase = host_phase(job)
    here, available = data.processes.local_count, available_bytes()
    if here * phase.num_bytes > available:
        shared = f", in {here} processes" if here > 1 else ""
        raise ValueError(
            f"the run needs about {size_text(here * phase.num_bytes)} more memory ({phase.name}"
            f"{shared}), but {size_text(available)} are available: try {phase.remedy}"
        )


def clip_bytes(model: LanguageModel) -> int:
    """Bytes of all learnable clip factors."""
    return sum(parameter.nbytes for parameter in model.parameters())


def held_bytes(directory: Path) -> int:
    """Bytes of all files in a directory; one that a thread renames meanwhile may be missed."""
    held = 0
    for file in directory.rglob("*"):
        with suppress(FileNotFoundError):
            held += file.stat().st_size if file.is_file() else 0
    return held


def picture_seconds(job: Job) -> float:
    """What drawing a block's pictures takes; a first, small one loads fonts."""
    magnitudes = dict.fromkeys(
        TITLES, torch.rand(job.streams.hidden, dtype=torch.float32, device="cpu")
    )
    draw_outliers({SITES[0].name: SiteReport({"original": magnitudes["original"]})}, "preflight")
    start = time.perf_counter()
    draw_outliers({site.name: SiteReport(magnitudes) for site in SITES}, "preflight")
    return time.perf_counter() - start


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
