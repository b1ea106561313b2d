"""From measured times to what runs: integers or the reference, and by which kernel.

Kernels of processors give the same bits, so among them the faster one is taken for each number of
tokens. Between integers and the reference roundings differ. So that is decided once, over all
measured numbers of tokens together, and never call by call: a model does not change its mind within
a generation or with the size of a batch.

What the fixed rule takes goes on unless something else is clearly faster, by its median and by its
best time alike. So a machine that was busy changes nothing. What could not run is left out.

On accelerators one kernel runs a linear, whatever the number of tokens: the operator that picks one
takes a tensor of the host, which no CUDA graph can hold.
"""

import math
from collections.abc import Mapping, Sequence

from duquant.nn.execution import FEWEST_INPUTS_PER_SCALE, PROCESSOR, Choice
from duquant.ops.integer_weight import ROW_COUNTS, KernelName, Kernels

REFERENCE = "reference"
CLEARLY = 1.05
"""How many times as fast something must be to take the place of what runs without a measurement."""
WORTH_ITS_MEMORY = 1.5
"""The same of a layout that is kept beside the packed weight, which takes three times as much, or
on an accelerator in its place, which takes twice as much; and there of the reference, whose values
in bfloat16 take five times as much."""

Times = Mapping[str, Sequence[Sequence[float]]]
"""Median and best seconds, of the reference and of every kernel, for each of ``ROW_COUNTS``; empty
where the time did not suffice. A candidate that failed has no times."""


def decide(
    times: Times,
    kernels: Sequence[KernelName],
    columns: int,
    device_type: str = PROCESSOR,
) -> Choice:
    """Choose between what was measured.

    Args:
        times: of the candidates.
        kernels: those for integers, first the one that runs without a measurement.
        columns: inputs that share a scale.
        device_type: where it was measured.
    """
    is_rule = columns >= FEWEST_INPUTS_PER_SCALE
    usual: Kernels = (kernels[0],) * len(ROW_COUNTS)
    if not times:
        return Choice(is_rule, usual, device_type)
    times = {name: each for name, each in times.items() if each}
    kernels = [kernel for kernel in kernels if kernel in times]
    if not kernels:
        return Choice(False, usual, device_type)
    is_mixed = device_type == PROCESSOR
    by_median, by_best = (
        {name: [timing[which] for timing in each] for name, each in times.items()}
        for which in (0, 1)
    )
    both = (fastest_kernels(each, kernels, is_mixed=is_mixed) for each in (by_median, by_best))
    chosen: Kernels = tuple(a if a == b else kernels[0] for a, b in zip(*both, strict=True))
    if REFERENCE not in times:
        return Choice(is_rule, chosen, device_type)
    gains = [
        _mean_ratio(each[REFERENCE], [each[kernel][row] for row, kernel in enumerate(chosen)])
        for each in (by_median, by_best)
    ]
    clearly = CLEARLY if device_type == PROCESSOR else WORTH_ITS_MEMORY
    is_integer = max(gains) >= 1 / clearly if is_rule else min(gains) > CLEARLY
    return Choice(is_integer, chosen, device_type)


def fastest_kernels(
    seconds: Mapping[str, Sequence[float]], kernels: Sequence[KernelName], *, is_mixed: bool = True
) -> Kernels:
    """For each number of tokens the packed kernel, or one that is the same for all of them.

    Two layouts of a byte per weight would take twice the memory.

    Args:
        seconds: of every kernel, for each of ``ROW_COUNTS``.
        kernels: at least one.
        is_mixed: whether the packed kernel and another may share a linear.
    """
    layouts = [kernel for kernel in kernels if kernel != "packed"]
    best: KernelName = layouts[0] if layouts else "packed"
    for other in layouts[1:]:
        if _mean_ratio(seconds[best], seconds[other]) > CLEARLY:
            best = other
    if "packed" not in kernels:
        return (best,) * len(ROW_COUNTS)
    if not is_mixed:
        is_worth_it = _mean_ratio(seconds["packed"], seconds[best]) > WORTH_ITS_MEMORY
        return (best if is_worth_it else "packed",) * len(ROW_COUNTS)
    pairs = zip(seconds["packed"], seconds[best], strict=True)
    return tuple(best if packed > WORTH_ITS_MEMORY * other else "packed" for packed, other in pairs)


def _mean_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Geometric mean over the numbers of tokens."""
    logarithms = [math.log(a / b) for a, b in zip(slow, fast, strict=True)]
    return math.exp(sum(logarithms) / len(logarithms))
