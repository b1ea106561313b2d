"""What the product may ask of a GPU, as tests hold it; lower a ceiling when less is asked.

*Kernels* count every operation, *launches* what is launched where the product's operators have
their Triton kernels (``tests/ops/launches.py``), *waits* moments at which the host waits for a
number of the device. Nothing of it was counted on a GPU: :mod:`tests.emulated` counts on a device
without hardware, :mod:`tests.benchmarks.written_kernels` in what Inductor writes for GPUs.
:mod:`tests.benchmarks.predicted` computes seconds from these numbers.
"""

KERNELS_OF_A_STEP = {"LWC": 1050, "everything": 1700, "distillation": 1200}
"""Of training; that of distillation is of a model of one block."""
LAUNCHES_OF_A_STEP = {"LWC": 523, "everything": 994, "distillation": 715}
UPLOADS_OF_A_TURN = {"block": 0, "distillation": 2}
"""That steps wait for, all in its first epoch. Token ids come from the host beside the steps."""

KERNELS_OF_A_SEARCH_STEP = {"outlier": 25, "authors": 32, "hadamard": 0, "random": 0}
WAITS_OF_A_SEARCH = {"outlier": 3, "authors": 3, "hadamard": 0, "random": 0}
"""Values are finite, their size is ordinary, rows were enough; the last for every 64 steps."""

LAUNCHES_OF_A_CHUNK = {"nearest": 135, "gptq": 332}
"""Of samples that pass a block together, in full precision; for GPTQ also twice when quantized."""
LAUNCHES_OF_A_BLOCK = 1697
"""Besides its chunks and the steps of its eight searches; nothing learns, weights are rounded to
nearest."""
WAITS_OF_A_BLOCK = {"nearest": 103, "gptq": 130}
"""Of its turn in ``fit``, which logs and writes files, with those of eight searches of at most 64
steps; besides those of its chunks."""
WAITS_OF_A_TURN = {
    "nothing_learns": {"enter": (54, 0), "finish": (41, 4)},
    "everything_learns": {"enter": (62, 0), "finish": (15, 0)},
    "searched_start": {"enter": (67, 4), "finish": (11, 0)},
}
"""Once in a block, with one chunk of samples, and for each further chunk; without the search."""
LAUNCHES_OF_A_COLUMN = 12
"""Of a weight that GPTQ rounds, and its share of a block of columns."""

KERNELS_OF_A_TOKEN = {"dynamic": 200, "static": 245, "beams": 270, "packed": 290}
"""Per layer, by cache. Most are definitions of operators that are one kernel each in Triton."""
LAUNCHES_OF_THE_ORIGINAL = 62
"""Of a token and layer before a model is quantized, dynamic cache."""
MORE_LAUNCHES = {"nothing_learns": 19, "searched_start": 19, "everything_learns": 37}
"""Of a token and layer of the quantized model, dynamic cache, beyond those of the original."""
COMPILED_FOR_PROCESSORS = 21
"""Launches of a token and layer of W4A4, in Inductor's graph for the processor."""
COMPILED_FOR_GPUS = {"not quantized": 15, "W4A4": 23}
"""Launches of a token and layer in what Inductor writes by its rules for GPUs."""
