"""An evaluation's directory: every measurement is kept by what decides it.

::

    parts/arc_easy-3f2a91bc.json             one model on one task, with every item's scores
    results/0-shot-limit-20-77ab03e1.json    one command's results, once all its parts are there

Names end in a digest of the settings: model, the task's definition and items, ``--limit``,
examples, seed, backend, versions. A taste and the whole thing therefore lie side by side and are
never taken for each other; the same command finds its parts and continues; and another command uses
whatever is measured already.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import quote

from duquant.atomic_files import write_json
from duquant.checksum import check_values, with_checksum
from duquant.json_files import read_json
from duquant.run_description import CONTENT
from duquant.run_lock import LOCK_FILE
from duquant.scores.evaluated import Evaluated
from duquant.scores.statistics import Measurement

PARTS, RESULTS = "parts", "results"
AGAIN = "delete it to measure it again"
Settings = Mapping[str, Any]
"""What decides a number, as plain values."""


class Part(TypedDict):
    """What the file of a part holds."""

    settings: dict[str, Any]
    measured: Measurement


class Results(TypedDict):
    """What decides which results cover others, of all that they hold."""

    evaluated: Evaluated


class EvaluationDirectory:
    """Finished parts and results.

    Args:
        path: the directory; it need not exist.

    Raises:
        ValueError: if it holds something else or damaged results; nothing is written yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        names = {file.name for file in path.iterdir()} if path.is_dir() else {path.name}
        is_taken = path.exists() and bool(names - {LOCK_FILE})
        if is_taken and not (path / PARTS).is_dir():
            raise ValueError(f"{path} is not empty and no evaluation; choose another --output_dir")
        for file in sorted((path / RESULTS).glob("*.json")):
            self._read_results(file)

    def has(self, name: str, settings: Settings) -> bool:
        """Whether a part is finished."""
        return self._part(name, settings).is_file()

    def key(self, name: str, model: Settings, settings: Settings) -> dict[str, Any]:
        """What a part is of; one that an earlier release measured is called as it was then."""
        sampled = {key: value for key, value in model.items() if key != CONTENT}
        then = {"model": sampled, **settings}
        return then if self.has(name, then) else {"model": model, **settings}

    def part(
        self, name: str, settings: Settings, measure: Callable[[], Measurement]
    ) -> Measurement:
        """A finished part, or one that is measured and written now.

        Raises:
            ValueError: if its file is damaged, or of other settings.
        """
        file = self._part(name, settings)
        if not file.exists():
            measured = measure().to_dict()
            write_json(file, with_checksum({"settings": settings, "measured": measured}))
        stored = read_json(file, Part, AGAIN)
        if stored["settings"] != settings:
            raise ValueError(f"{file} has other settings than its name says; delete it")
        try:
            check_values(read_json(file), file)
        except ValueError as error:
            raise ValueError(f"{error}: {AGAIN}") from error
        return stored["measured"]

    def write_results(self, words: str, results: dict[str, Any]) -> tuple[Path, list[Path]]:
        """Write the results of one command, and remove those that they :func:`cover`.

        Args:
            words: what the file's name begins with.
            results: what is written; its ``evaluated`` decides what it covers.

        Returns:
            The file, and those removed.
        """
        file = self.path / RESULTS / f"{words}-{_digest(results['evaluated'])}.json"
        write_json(file, results)
        covered = [
            other
            for other in sorted(file.parent.glob("*.json"))
            if other != file and cover(results["evaluated"], self._read_results(other)["evaluated"])
        ]
        for other in covered:
            other.unlink()
        return file, covered

    def _read_results(self, file: Path) -> "Results":
        return read_json(file, Results, "delete it, and the same evaluate writes it again")

    def _part(self, name: str, settings: Settings) -> Path:
        return self.path / PARTS / f"{quote(name, safe='')}-{_digest(settings)}.json"


EDITED = {"version", "definition"}
"""Settings of a task that change when it is edited, and its results with it."""


def cover(new: Settings, old: Settings) -> bool:
    """Whether an evaluation says all that an older one said, of as many items or more.

    A task that was edited since then is still that task: its newer results count.

    Args:
        new: its ``model``, the one ``compared`` or ``None``, and settings of ``parts`` by name.
        old: the same of the older one.
    """
    return (
        old.get("model") == new["model"]
        and old.get("compared") in (None, new["compared"])
        and all(
            name in new["parts"] and _is_at_least(new["parts"][name], settings)
            for name, settings in old["parts"].items()
        )
    )


def _is_at_least(new: Settings, old: Settings) -> bool:
    """Whether settings differ by a higher limit or an edit at most; no limit is the highest."""
    most, before = new.get("limit"), old.get("limit")
    is_higher = most is None or (before is not None and before <= most)
    return is_higher and _lasting(old) == _lasting(new)


def _lasting(settings: Settings) -> Settings:
    return {key: value for key, value in settings.items() if key not in {"limit", *EDITED}}


def _digest(settings: Settings) -> str:
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
