"""What runs a linear, decided by a short measurement: integers or the reference, by which kernel.

Measured are whole linears, from encoded tokens or floats to outputs; all numbers are ones,
because times do not depend on values. The weight has as many inputs as the real one and
as many outputs, up to sizes that keep the measurement of one kind of linear below a second. Its
kind is the number of inputs, how many of them share a scale, the widths in bits and the dtype; so
all linears that read one activation, joined or cut in rows or not, are decided alike.

On an accelerator the same linears are measured by its own clock (:mod:`duquant.ops.device_turns`),
and a candidate that fails is left out.

Nothing is measured where there is nothing to choose, where weights are to stay packed, on an
accelerator with too little memory or while its work is compiled or captured, or with
``DUQUANT_MEASURE=0``: then the fixed rule of :mod:`duquant.nn.execution` decides.
"""

import functools
import logging
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from duquant.nn.choice import REFERENCE, Times, decide
from duquant.nn.execution import PROCESSOR, Choice, Execution, obstacle
from duquant.nn.kept_times import kept_times
from duquant.nn.layouts import WeightIntegers, make_panels
from duquant.nn.packed_linear import PackedLinear
from duquant.ops.affine import AffineGrid
from duquant.ops.device_memory import free_device_bytes
from duquant.ops.device_turns import accelerator, device_timings, is_recorded
from duquant.ops.integer_linear import integer_linear
from duquant.ops.integer_product import layout_kernels, reads_packed
from duquant.ops.integer_weight import ROW_COUNTS, KernelName
from duquant.ops.kernel_presence import has_kernel
from duquant.ops.packing import packed_width
from duquant.ops.processor import processor
from duquant.ops.quantized_tokens import encode_tokens
from duquant.ops.turns import Timing, clock, timings

SWITCH = "DUQUANT_MEASURE"
SECONDS = 0.8
"""For one kind; where they do not suffice the fixed rule decides."""
MOST_WEIGHTS, MOST_PRODUCTS, MOST_THREADS = 1 << 22, 1 << 27, 8
"""Per thread, of so many threads; products are those of a weight with the tokens of one run."""
FEWEST_OUTPUTS = 64
MOST_ON_ACCELERATORS = 1 << 26
"""Weights."""
MEMORY = 2 << 30
"""Bytes of an accelerator that must be free; a measurement takes about half of them at most."""

logger = logging.getLogger(__name__)
Run = Callable[[], object]


class Kind(NamedTuple):
    """What times depend on, beside the machine.

    Attributes:
        inputs: of the linear.
        columns: inputs that share a scale.
        bits: width of a weight.
        activation_bits: width of an activation.
        dtype: that the reference multiplies in, by its name.
    """

    inputs: int
    columns: int
    bits: int
    activation_bits: int
    dtype: str


def choose(linear: PackedLinear, execution: Execution, device: torch.device) -> Choice | None:
    """What to run a linear by, or ``None`` where the fixed rule decides.

    Args:
        linear: any linear of its kind; it may be on the meta device.
        execution: the user's choice.
        device: where it will run.
    """
    is_open = execution.backend != "reference" and execution.weights_in_memory == "fast"
    if not is_open or os.environ.get(SWITCH, "1") == "0":
        return None
    if obstacle(device, linear.activations, linear.form) is not None:
        return None
    if device.type != PROCESSOR and not _is_measurable(device):
        return None
    dtype = str(linear.output_like.dtype).removeprefix("torch.")
    bits = linear.form.bits, linear.activations.bits
    kind = Kind(linear.in_features, linear.group_size, *bits, dtype)
    kernels = _kernels(kind, device)
    if execution.backend == "integer" and len(kernels) == 1:
        return None
    has_kernel("scaled_sums", device.type)  # compiled now, not while the clock runs
    try:
        return _choice(kind, kernels, torch.get_num_threads(), device)
    except torch.OutOfMemoryError:  # somebody else took it meanwhile
        return None


def _is_measurable(device: torch.device) -> bool:
    """Whether an accelerator may be given work now that nobody asked for, and has memory for it."""
    free = None if is_recorded(device) else free_device_bytes(device)
    return free is not None and free >= MEMORY


@functools.cache
def _choice(
    kind: Kind, kernels: tuple[KernelName, ...], threads: int, device: torch.device
) -> Choice:
    """Once in a process, so that it decides alike whatever becomes of the file."""
    here = {**processor(), "torch": torch.__version__, "threads": threads}
    machine = here if device.type == PROCESSOR else accelerator(device)
    names = [*kernels, REFERENCE]
    times = kept_times({**kind._asdict(), **machine}, names, lambda: measure(kind, kernels, device))
    if not times:
        logger.info("%s: the machine was too busy to measure, the fixed rule decides", kind)
    return decide(times, kernels, kind.columns, device.type)


def _kernels(kind: Kind, device: torch.device) -> tuple[KernelName, ...]:
    packed: list[KernelName] = []
    widths: dict[str, int] = {"activation_bits": kind.activation_bits, "weight_bits": kind.bits}
    has_one_scale = kind.columns == kind.inputs
    if has_one_scale and reads_packed(**widths, columns=kind.inputs, device_type=device.type):
        packed = ["packed"]
    return (*packed, *layout_kernels(device))


@torch.inference_mode()
def measure(kind: Kind, kernels: tuple[KernelName, ...], device: torch.device) -> Times:
    """Seconds of every kernel and of the reference, for each of ``ROW_COUNTS``.

    On a processor it gives up, with an empty result, where the time does not suffice.
    """
    if device.type != PROCESSOR:
        outputs = max(FEWEST_OUTPUTS, min(kind.inputs, MOST_ON_ACCELERATORS // kind.inputs))
        return device_timings(_candidates(kind, kernels, outputs, device), ROW_COUNTS, device)
    end = clock() + SECONDS
    times: dict[str, list[Timing]] = {name: [] for name in (*kernels, REFERENCE)}
    made: dict[int, dict[str, Callable[[int], Run]]] = {}
    for rows in ROW_COUNTS:
        outputs = _outputs(kind.inputs, rows)
        if outputs not in made:
            made[outputs] = _candidates(kind, kernels, outputs, device)
        runs = {name: prepare(rows) for name, prepare in made[outputs].items()}
        found = timings(runs, end)
        if found is None:
            return {}
        for name, timing in found.items():
            times[name].append(timing)
    return times


def _outputs(inputs: int, rows: int) -> int:
    """Of a weight that is like a real one and does not take too long."""
    threads = min(torch.get_num_threads(), MOST_THREADS)
    most = threads * min(MOST_WEIGHTS, MOST_PRODUCTS // rows) // inputs
    return max(FEWEST_OUTPUTS, min(inputs, most))


def _candidates(
    kind: Kind, kernels: tuple[KernelName, ...], outputs: int, device: torch.device
) -> dict[str, Callable[[int], Run]]:
    """For every candidate what makes a run of so many tokens; its weight is made with the first."""
    filled = functools.partial(torch.full, fill_value=1, device=device)
    dtype: torch.dtype = getattr(torch, kind.dtype)
    codes = filled((outputs, kind.inputs), dtype=torch.uint8)
    groups = kind.inputs // kind.columns
    integers = WeightIntegers(
        packed=filled((outputs, packed_width(kind.inputs, kind.bits)), dtype=torch.uint8),
        codes=lambda: codes,
        scale=filled((outputs, groups), dtype=torch.float32),
        zero=filled((outputs, groups), dtype=torch.int16),
        columns=kind.inputs,
        group_size=kind.columns,
        bits=kind.bits,
        activation_bits=kind.activation_bits,
    )

    def by_kernel(kernel: KernelName) -> Callable[[int], Run]:
        laid_out = functools.cache(lambda: make_panels(integers, (kernel,) * len(ROW_COUNTS)))

        def prepare(rows: int) -> Run:
            ones, panels = filled((rows, 1), dtype=torch.float32), laid_out()
            q = filled((rows, kind.inputs), dtype=torch.uint8)
            tokens = encode_tokens(q, AffineGrid(ones, ones))
            return lambda: integer_linear(tokens, panels, None, dtype)

        return prepare

    values = functools.cache(lambda: filled((outputs, kind.inputs), dtype=dtype))

    def reference(rows: int) -> Run:
        x, weight = filled((rows, kind.inputs), dtype=dtype), values()
        return lambda: F.linear(x, weight)

    return {**{str(kernel): by_kernel(kernel) for kernel in kernels}, REFERENCE: reference}
