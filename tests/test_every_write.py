"""A run that crashes at any write ends, when it is repeated, as if nothing had happened."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from callbacks.checkpointing import require_calibrated
from callbacks.defaults import default_callbacks
from callbacks.run_directory import is_finished, prepare_fit
from callbacks.run_summary import show_finished
from duquant.config import RotationConfig
from duquant.run_lock import RunLock
from tests.in_process import (
    LIGHTNING_WARNINGS,
    NO_LWC,
    small_data,
    small_language_model,
    small_trainer,
    without_pictures,
    write_text,
)
from tests.small_run import write_small_model

pytestmark = LIGHTNING_WARNINGS
STEP = 13
"""How far apart the moments are that a suite has time for; the environment variable EVERY_WRITE=1
tries all of them."""
COSTS = {"seconds", "peak_memory_bytes", "preflight", "checksum"}
"""What differs between any two runs."""


class CrashError(BaseException):
    """Nobody can handle it, like SIGKILL."""


class Crash:
    """Counts what changes a directory's files, and crashes at one such change.

    Args:
        directory: only changes in it count.
        at: number of the change, from 0; every change has a moment before and one after it.
    """

    def __init__(self, directory: Path, at: int | None = None) -> None:
        self.directory = directory
        self.at = at
        self.count = 0

    @contextmanager
    def planted(self) -> Iterator["Crash"]:
        """Watch every rename and removal."""
        with pytest.MonkeyPatch.context() as patched:
            for change in ("replace", "unlink", "rmdir"):
                patched.setattr(Path, change, self._crashing(getattr(Path, change)))
            yield self

    def _crashing(self, change: Any) -> Any:
        def changed(path: Path, *others: Any, **options: Any) -> Any:
            self._step(path)
            result = change(path, *others, **options)
            self._step(path)
            return result

        return changed

    def _step(self, path: Path) -> None:
        if self.directory in path.parents:
            self.count += 1
            if self.count - 1 == self.at:
                raise CrashError


class Runs:
    """Runs of one model, as the command line does them, but for the pictures, which take long."""

    def __init__(self, directory: Path, patched: pytest.MonkeyPatch) -> None:
        without_pictures(patched)
        self.source = write_small_model(directory / "source", blocks=2)
        self.text = write_text(directory / "text.txt")

    def go(self, output: Path) -> None:
        data = small_data(self.source, self.text, num_samples=2, sequence_length=16)
        rotation = RotationConfig(block_size=16, max_steps=1)
        model = small_language_model(self.source, output, rotation=rotation, lwc=NO_LWC)
        with RunLock(output) as lock:
            go_on = prepare_fit(model, data, None, lock=lock)
            if is_finished(model):
                show_finished(model, data)
                return
            trainer = small_trainer(*default_callbacks(output, with_progress=False))
            trainer.fit(model, datamodule=data, ckpt_path="last" if go_on else None)
            require_calibrated(model)
            trainer.validate(model, data, verbose=False)


def without_costs(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_costs(v) for k, v in value.items() if k not in COSTS}
    return [without_costs(v) for v in value] if isinstance(value, list) else value


def contents(output: Path) -> dict[str, Any]:
    """What lies in a run directory; of files that tell times, that they are there."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in output.rglob("*") if path.is_file()):
        name = str(file.relative_to(output))
        if file.suffix == ".json":
            values = json.loads(file.read_text(encoding="utf-8"))
            found[name] = "there" if name == "preflight.json" else without_costs(values)
        else:
            tells_times = file.suffix in {".html", ".ckpt"} or name == "report.md"
            found[name] = "there" if tells_times else file.read_bytes()
    found.get("summary.json", {}).pop("artifact", None)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patched:
        yield Runs(tmp_path_factory.mktemp("runs"), patched)


@pytest.fixture(scope="module")
def undisturbed(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run, and how many moments of it there are to crash at."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    with Crash(output).planted() as crash:
        runs.go(output)
    return output, crash.count


def test_a_run_that_crashed_at_any_write_is_repeated(
    runs: Runs, undisturbed: tuple[Path, int], tmp_path: Path
) -> None:
    whole, moments = undisturbed
    expected = contents(whole)
    assert moments > 2 * 20, "a rename or a removal has a moment before it and one after it"
    step = int(os.environ.get("EVERY_WRITE", STEP))
    for moment in range((moments - 1) % step, moments, step):
        output = tmp_path / f"run_{moment}" / "run"
        with Crash(output, moment).planted(), pytest.raises(CrashError):
            runs.go(output)
        runs.go(output)
        found = contents(output)
        assert found.keys() == expected.keys(), moment
        for name, content in found.items():
            assert content == expected[name], (moment, name)


def test_a_finished_run_that_lacks_its_report_writes_it(
    runs: Runs, undisturbed: tuple[Path, int]
) -> None:
    """And nothing else, whatever its owner has changed since."""
    output, _ = undisturbed
    expected = contents(output)
    for name in ("report.html", "report.md"):
        (output / name).unlink()
        (output / "model" / "README.md").write_text("My own card.", encoding="utf-8")
        runs.go(output)
        assert (output / name).is_file()
    assert contents(output) == {**expected, "model/README.md": b"My own card."}
