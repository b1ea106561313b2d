"""How long some runs take beside each other, on a machine that may do other work too.

They take turns, so that all meet the same noise and throw each other's weights out of the cache, as
the layers of a model do. Of every run the median and the best time count: what both say is no
accident. A run that is far slower than the fastest is not repeated.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

FEWEST_TURNS, MOST_TURNS = 5, 25
SECONDS = 0.06
"""After so long no turn begins beyond the fewest."""
TURNS_BEFORE_JUDGING = 2
HOPELESS = 4
"""A run whose best time is so many times the fastest's median is left out."""

Clock = Callable[[], float]
clock: Clock = time.perf_counter


class Timing(NamedTuple):
    """Seconds of a run."""

    median: float
    best: float


def timings(runs: Mapping[str, Callable[[], object]], end: float) -> dict[str, Timing] | None:
    """Time each run several times, after one of each to warm up.

    Args:
        runs: by name.
        end: on the clock, when to give up.

    Returns:
        By name; ``None`` if the time did not suffice for the fewest turns.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    waiting = dict(runs)
    for run in runs.values():
        if clock() > end:
            return None
        run()
    start = clock()
    for turn in range(MOST_TURNS):
        if turn >= FEWEST_TURNS and clock() - start > SECONDS:
            break
        for name, run in waiting.items():
            before = clock()
            if before > end:
                return None
            run()
            times[name].append(clock() - before)
        if turn + 1 == TURNS_BEFORE_JUDGING:
            fastest = min(statistics.median(each) for each in times.values())
            waiting = {n: r for n, r in waiting.items() if min(times[n]) <= HOPELESS * fastest}
    return {name: Timing(statistics.median(each), min(each)) for name, each in times.items()}
