"""Scenarios of streams that lie on the host while the emulated device computes."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import duquant
from duquant import quantization
from duquant.config import DistillationConfig, LWCConfig
from duquant.data import stream_files, stream_pass
from duquant.data.stream_files import StreamFiles
from duquant.data.streams import Streams, StreamSizes
from duquant.ops import downloads, uploads
from duquant.ops.copy_stream import CopyStream, Mark
from duquant.ops.downloads import Downloads
from duquant.ops.uploads import uploaded
from tests.emulated import queues
from tests.emulated.counts import counting
from tests.emulated.scenarios import DEVICE, LWC, Facts, scenario, sources
from tests.in_process import LEARNS_ALL, NO_LWC, ROTATION
from tests.small_run import stored_tensors

SEEDS = 60
PLACE = torch.device(DEVICE)
RECIPES: dict[str, dict[str, Any]] = {
    "nothing learns": {"rotation": ROTATION, "lwc": NO_LWC},
    "augmented": {"rotation": ROTATION, "lwc": LWCConfig(2, 0.1, 2, augmented_loss=True)},
    "everything": {**LEARNS_ALL, "lwc": LWC, "distillation": DistillationConfig(epochs=1)},
}


def _to_and_fro(seed: int) -> bool:
    """Whether values come back from the device as they went there, by queues in a random order."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(9, 5, generator=generator)
    numbers = torch.arange(9)
    back, kept = torch.zeros(9, 5), []
    with queues.random_order(seed):
        parts = [slice(start, start + 2) for start in range(0, 9, 2)]
        items = uploaded(([values[part], numbers[part]] for part in parts), PLACE)
        with Downloads(CopyStream.of(PLACE)) as on_the_way:
            for part, (here, count) in zip(parts, items, strict=True):
                computed = here.clone()
                on_the_way.put(back, part, computed)
                kept.append(count)
                del here, count, computed  # their memory is free for others
        abandoned = uploaded(([values[part]] for part in parts), PLACE)
        (first,) = next(abandoned)
        abandoned.close()
        del abandoned
        gc.collect()
    ends = torch.equal(torch.cat(kept).cpu(), numbers), torch.equal(first.cpu(), values[:2])
    lost, queues.LOST[:] = list(queues.LOST), []
    return torch.equal(back, values) and all(ends) and not lost


def _right_orders() -> int:
    right = sum(_to_and_fro(seed) for seed in range(SEEDS))
    queues.drain()
    return right


def _dropping(self: Any, copies: Any, target: Any, where: slice, values: Tensor) -> None:
    """As the product, but what is copied belongs to nobody."""
    usual_start(self, copies, target, where, values)
    assert self._under_way is not None
    mark, target, where, values = self._under_way
    self._under_way = mark, target, where, torch.zeros(len(values), device="cpu")


def _without_after(self: Any, pairs: Any, *, after: Any) -> Any:
    """As the product, but copies wait for nothing."""
    empty = queues.Event()
    empty.is_reached = True
    return usual_copy(self, pairs, after=Mark(empty))


def _forgetting(self: Any) -> Any:
    """As the product, but nobody learns that values were taken."""
    before = self._taken
    found = usual_take(self)
    self._taken = before
    return found


def _nothing(*_: Any) -> None:
    """Neither asks nor waits."""


usual_start, usual_take, usual_copy = downloads._Slot.start, uploads._Slot.take, CopyStream.copy

MISTAKES: dict[str, Callable[[], Any]] = {
    "computes before the copy": lambda: mock.patch.object(CopyStream, "compute_after", _nothing),
    "copies before it is computed": lambda: mock.patch.object(CopyStream, "copy", _without_after),
    "copies over what is not taken": lambda: mock.patch.object(uploads._Slot, "take", _forgetting),
    "writes into a buffer in use": lambda: mock.patch.object(uploads._Slot, "settle", _nothing),
    "reads before the copy": lambda: mock.patch.object(queues.Event, "synchronize", _nothing),
    "drops what is copied": lambda: mock.patch.object(downloads._Slot, "start", _dropping),
}


@scenario
def copies_in_any_order(folder: Path) -> Facts:
    """How many random orders give the right values: of the product, and with a mistake planted."""
    facts: Facts = {"orders": SEEDS, "product": _right_orders(), "mistakes": {}}
    for name, mistake in MISTAKES.items():
        with mistake():
            facts["mistakes"][name] = _right_orders()
    return facts


def _quantized(folder: Path, blocks: int, place: str, recipe: dict[str, Any]) -> Facts:
    source, text = sources(folder, blocks)
    with counting() as counts, mock.patch.object(stream_pass, "TOKENS_AT_ONCE", 32):
        duquant.quantize(
            source, text.read_text(encoding="utf-8"), duquant.Recipe(**recipe),
            output_dir=folder / place / "model", num_samples=6, sequence_length=16, device=DEVICE,
        )  # fmt: skip
    return counts.totals()


@scenario
def streams_on_the_host(folder: Path) -> Facts:
    """Recipes with streams on the device and on the host, in three chunks or batches."""
    facts: Facts = {}
    for name, recipe in RECIPES.items():
        counts = {}
        for place in ("device", "host"):
            with mock.patch.object(*_placed(place)):
                totals = [_quantized(folder / name / str(n), n, place, recipe) for n in (1, 2)]
            counts[place] = {k: totals[1][k] - totals[0][k] for k in ("waits", "uploads", "marks")}
        stored = [stored_tensors(folder / name / "2" / place) for place in ("device", "host")]
        facts[name] = {
            "equal": stored[0].keys() == stored[1].keys()
            and all(torch.equal(stored[0][key], stored[1][key]) for key in stored[0]),
            "of a block": counts,
        }
    return facts


def _placed(place: str) -> tuple[Any, str, Any]:
    usual = quantization.with_streams_placed
    return (
        quantization,
        "with_streams_placed",
        usual if place == "device" else lambda job, free: job,
    )


@scenario
def streams_to_files(folder: Path) -> Facts:
    """Streams of the device are written: what is asked of it, and whether the file is right."""
    sizes = StreamSizes(4, 6, 8, torch.float32, True)
    here, there = (
        StreamFiles(folder / place, sizes, device=torch.device(place)) for place in ("cpu", DEVICE)
    )
    ours = Streams(torch.randn(4, 6, 8), torch.randn(4, 6, 8), torch.randn(1, 6, 8))
    theirs = Streams(ours.full_precision.to(PLACE), ours.quantized.to(PLACE), ours.calibration_mean)
    here.save(1, ours)
    with counting() as counts, mock.patch.object(stream_files, "BYTES_AT_ONCE", 2 * 6 * 8 * 4):
        there.save(1, theirs)
    same = here.path(1).read_bytes() == there.path(1).read_bytes()
    return {"equal": same, **counts.totals()}
