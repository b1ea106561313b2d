"""How often the host waits while a block is entered and finished."""

import collections
from pathlib import Path
from typing import Any

import duquant
from duquant.calibration import BlockCalibration
from duquant.config import DistillationConfig
from duquant.data import stream_pass
from tests.emulated.counts import counting
from tests.emulated.scenarios import DEVICE, RECIPES, Facts, scenario, sources

SEARCH = ("greedy_search.py", "device_search.py", "rotation.py", "screen.py")
"""Files of the rotation search, which waits by its steps; not counted here."""
SAMPLES, TOKENS = 4, 16
WHOLE = stream_pass.TOKENS_AT_ONCE
"""All samples at once, as so few are; fewer tokens give chunks."""


def _waits(folder: Path, recipe: dict[str, Any], tokens_at_once: int) -> dict[str, Any]:
    """Waits of a block's beginning and of its end, by place; those of the search left out."""
    (source, text), found = sources(folder, blocks=1), {}
    usual = BlockCalibration.enter, BlockCalibration.finish, stream_pass.TOKENS_AT_ONCE

    def counted(name: str, work: Any) -> Any:
        def do(*arguments: Any) -> Any:
            with counting() as counts:
                result = work(*arguments)
            places: collections.Counter[str] = collections.Counter()
            for place, count in counts.waits.items():
                file = place.rpartition("/")[2]
                if not file.startswith(SEARCH):
                    places[file] += count
            found[name] = places
            return result

        return do

    BlockCalibration.enter = counted("enter", usual[0])  # type: ignore[method-assign]
    BlockCalibration.finish = counted("finish", usual[1])  # type: ignore[method-assign]
    stream_pass.TOKENS_AT_ONCE = tokens_at_once
    duquant.quantize(
        source, text.read_text(encoding="utf-8"), duquant.Recipe(**recipe),
        output_dir=folder / "model", num_samples=SAMPLES, sequence_length=TOKENS, device=DEVICE,
    )  # fmt: skip
    BlockCalibration.enter, BlockCalibration.finish, stream_pass.TOKENS_AT_ONCE = usual  # type: ignore[method-assign]
    return found


@scenario
def turns(folder: Path) -> Facts:
    """Of every recipe, for one chunk of samples and for each further one, and where."""
    facts: Facts = {}
    for name, options in RECIPES.items():
        recipe = {**options, "distillation": DistillationConfig(epochs=0)}
        whole = _waits(folder / name, recipe, WHOLE)
        chunks = _waits(folder / f"{name} in chunks", recipe, TOKENS)
        facts[name] = {
            part: {
                "waits": whole[part].total(),
                "more of a chunk": (chunks[part] - whole[part]).total() / (SAMPLES - 1),
                "at": {place: count for place, count in whole[part].items() if count},
            }
            for part in ("enter", "finish")
        }
    return facts
