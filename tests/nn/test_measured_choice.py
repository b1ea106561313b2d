"""A choice by a fake clock: when there is one, what it changes, and what it does not."""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from duquant.formats.integer import Integer
from duquant.model.execution import configure_site, describe_kernels
from duquant.nn import measured_choice
from duquant.nn.activation import ActivationQuantizer
from duquant.nn.execution import Choice, Execution
from duquant.nn.measured_choice import choose
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.planned_memory import bytes_at_work
from duquant.nn.site import SiteTransform
from duquant.ops.integer_linear import chosen_linear
from duquant.ops.integer_product import layout_kernels
from duquant.ops.integer_weight import ROW_COUNTS, ChosenWeight, Kernels
from duquant.ops.kernels import int4
from duquant.ops.turns import Timing
from tests.nn.test_packed_linear import packed_linear, quantized_input
from tests.outliers import outlier_activation, random_weight

CPU = torch.device("cpu")
WIDE = (16, 512)
ROWS = (1, 3, 16, 40, 130)
pytestmark = pytest.mark.skipif(not layout_kernels(CPU), reason="this processor has no int8 engine")
packed_needed = pytest.mark.skipif(not int4.is_available(), reason="there is no kernel here")
OTHERS = layout_kernels(CPU)


class Times:
    """Seconds that runs are said to take, for each of ``ROW_COUNTS``."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, ...]] = {
            "packed": (1, 1, 1),
            "fbgemm": (9, 9, 9),
            "onednn": (9, 9, 9),
            "reference": (9, 9, 9),
        }
        self.calls = 0

    def __call__(self, runs: Mapping[str, Any], end: float) -> dict[str, Timing] | None:
        at = self.calls % len(ROW_COUNTS)
        self.calls += 1
        for run in runs.values():
            run()
        return {name: Timing(self.seconds[name][at], self.seconds[name][at]) for name in runs}


@pytest.fixture
def times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Times]:
    int4.is_available()  # compiled where the cache usually is
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("DUQUANT_MEASURE", "1")
    times = Times()
    monkeypatch.setattr(measured_choice, "timings", times)
    measured_choice._choice.cache_clear()
    yield times
    measured_choice._choice.cache_clear()


def site(linear: PackedLinear) -> SiteTransform:
    return SiteTransform(linear.in_features, ActivationQuantizer(Integer(4)))


# When there is a choice


def test_it_is_measured_once_in_a_process_and_once_on_a_machine(times: Times) -> None:
    linear = packed_linear(shape=WIDE)
    first = choose(linear, Execution(), CPU)
    assert times.calls == len(ROW_COUNTS)
    times.seconds["reference"] = (0.1, 0.1, 0.1)
    assert choose(packed_linear(shape=(9, 512)), Execution("integer"), CPU) == first
    measured_choice._choice.cache_clear()
    assert choose(linear, Execution(), CPU) == first
    assert times.calls == len(ROW_COUNTS), "the second process reads the file"


@pytest.mark.parametrize(
    "execution",
    [Execution("reference"), Execution("auto", "packed"), Execution("integer", "packed")],
)
def test_nothing_is_measured_where_nothing_is_chosen(execution: Execution, times: Times) -> None:
    assert choose(packed_linear(shape=WIDE), execution, CPU) is None
    assert times.calls == 0


def test_what_is_offloaded_is_not_measured(times: Times) -> None:
    """How accelerators are measured stands in ``tests/emulated/test_choices.py``."""
    assert choose(packed_linear(shape=WIDE), Execution(), torch.device("meta")) is None
    assert times.calls == 0


def test_the_switch_leaves_the_fixed_rule(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUQUANT_MEASURE", "0")
    assert choose(packed_linear(shape=WIDE), Execution(), CPU) is None
    assert times.calls == 0


def test_widths_that_no_integers_have_are_not_measured(times: Times) -> None:
    assert choose(packed_linear(12, shape=WIDE), Execution(), CPU) is None
    assert times.calls == 0


def test_a_busy_machine_keeps_the_rule(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_choice, "timings", lambda runs, end: None)
    choice = choose(packed_linear(shape=WIDE), Execution(), CPU)
    assert choice is not None
    assert choice.is_integer
    assert set(choice.kernels) == {"packed" if int4.is_available() else "fbgemm"}


def test_the_measurement_itself_runs_every_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real clock, with time enough; nothing is said about which is faster."""
    monkeypatch.setattr(measured_choice, "SECONDS", 1e9)
    for inputs, columns, bits in [(64, 64, 4), (64, 16, 4), (1100, 1100, 8)]:
        kind = measured_choice.Kind(inputs, columns, bits, bits, "bfloat16")
        kernels = measured_choice._kernels(kind, CPU)
        found = measured_choice.measure(kind, kernels, CPU)
        assert set(found) == {*kernels, "reference"}
        assert all(len(each) == len(ROW_COUNTS) for each in found.values())
        assert all(0 < timing[1] <= timing[0] for each in found.values() for timing in each)


# What it changes


@pytest.mark.parametrize("backend", ["auto", "integer"])
@pytest.mark.parametrize("is_faster", [False, True])
def test_the_reference_runs_where_it_is_faster_and_was_not_ruled_out(
    is_faster: bool, backend: Any, times: Times
) -> None:
    times.seconds["reference"] = (0.1, 0.1, 0.1) if is_faster else (1, 1, 1)
    linear = packed_linear(shape=WIDE)
    transform = site(linear)
    configure_site(transform, [linear], Execution(backend))
    is_integer = backend == "integer" or not is_faster
    assert linear.is_integer is transform.emits_integers is is_integer
    assert describe_kernels([linear]).startswith("integer" if is_integer else "reference")


def test_groups_are_multiplied_as_integers_where_that_is_faster(times: Times) -> None:
    times.seconds.update({"fbgemm": (1, 1, 1), "onednn": (1, 1, 1)})
    linear = packed_linear(shape=WIDE, group_size=64)
    configure_site(site(linear), [linear], Execution())
    assert linear.is_integer
    times.seconds["reference"] = (1, 1, 1)
    other = packed_linear(shape=WIDE, group_size=32)
    configure_site(site(other), [other], Execution())
    assert not other.is_integer


def test_on_another_kind_of_device_the_rule_decides_again(
    times: Times, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor that prefers the reference says nothing about the GPU a model is moved to."""
    times.seconds["reference"] = (0.1, 0.1, 0.1)
    linear = packed_linear(shape=WIDE)
    transform = site(linear)
    configure_site(transform, [linear], Execution())
    assert not transform.emits_integers
    for module in ("duquant.nn.site", "duquant.nn.execution"):
        monkeypatch.setattr(f"{module}.engine", lambda device: "cuda")
    transform.to("meta")
    linear.to("meta")
    assert transform.emits_integers
    assert linear.is_integer


@packed_needed
def test_what_runs_is_said_in_words(times: Times) -> None:
    times.seconds["fbgemm"] = (1, 0.5, 0.5)
    linear, grouped = packed_linear(shape=WIDE), packed_linear(shape=(4, 64), group_size=8)
    configure_site(site(linear), [linear], Execution())
    expected = "integer by packed at 1, fbgemm at 16, fbgemm at 128 tokens"
    assert describe_kernels([linear]) == expected
    configure_site(site(grouped), [grouped], Execution("reference"))
    both = describe_kernels([linear, grouped])
    assert both == f"{expected} (512 inputs); reference in float32 (64 inputs)"


# What it does not change: bits


def chosen(linear: PackedLinear, kernels: Kernels) -> PackedLinear:
    linear.restore()
    linear.execution, linear.choice = Execution("integer"), Choice(True, kernels)
    return linear


def mixtures() -> Iterator[Kernels]:
    for other in OTHERS:
        yield ("packed", "packed", other)
        yield ("packed", other, "packed")
        yield (other, "packed", "packed")
        yield (other, other, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_far", [False, True])
def test_every_mixture_of_kernels_gives_the_same_bits(is_far: bool, dtype: torch.dtype) -> None:
    """Far from zero, corrections are rounded: in one order, whatever multiplied."""
    weight = random_weight(7, 2048, seed=0)
    weight = 1 + 1e-3 * weight if is_far else weight
    linear = packed_linear(shape=(7, 2048), bias=True, dtype=dtype, weight=weight)
    for rows in ROWS:
        x = outlier_activation(rows, 2048, seed=rows)
        tokens = quantized_input(linear, 1 + 1e-3 * x if is_far else x)
        expected = chosen(linear, ("packed", "packed", "packed"))(tokens)
        for kernels in mixtures():
            assert torch.equal(chosen(linear, kernels)(tokens), expected), (rows, kernels)


@pytest.mark.parametrize("bits", [2, 8])
def test_other_widths_and_groups_give_the_same_bits(bits: int) -> None:
    for group_size in (None, 40):
        linear = packed_linear(bits, bits, shape=(7, 1200), group_size=group_size, bias=True)
        tokens = quantized_input(linear, outlier_activation(20, 1200, seed=0))
        outputs = [chosen(linear, (other,) * 3)(tokens) for other in OTHERS]
        assert all(torch.equal(output, outputs[0]) for output in outputs)


@packed_needed
def test_a_mixture_multiplies_by_the_kernel_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = chosen(packed_linear(shape=(7, 64)), ("packed", OTHERS[-1], OTHERS[-1]))
    (panel,) = linear.prepare()
    assert isinstance(panel.weight, ChosenWeight)
    counted: list[int] = []
    product = type(panel.weight.laid_out).product

    def count(self: Any, q: Tensor) -> Tensor:
        counted.append(len(q))
        return product(self, q)

    monkeypatch.setattr(type(panel.weight.laid_out), "product", count)
    for rows in (1, 4, 5, 200):
        linear(quantized_input(linear, outlier_activation(rows, 64, seed=0)))
    assert counted == [5, 200]


@packed_needed
def test_one_compiled_graph_serves_every_number_of_tokens() -> None:
    linear = chosen(packed_linear(shape=(7, 64), bias=True), ("packed", OTHERS[-1], OTHERS[-1]))
    linear.prepare()
    inputs = [quantized_input(linear, outlier_activation(rows, 64, seed=0)) for rows in (3, 130)]
    torch._dynamo.mark_dynamic(inputs[1], 0)
    torch.compiler.reset()
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(linear, backend=backend, fullgraph=True)
    for tokens in reversed(inputs):
        assert torch.equal(compiled(tokens), linear(tokens))
    assert len(graphs) == 1


@packed_needed
def test_the_mixture_is_an_operator() -> None:
    linear = chosen(packed_linear(shape=(7, 64), bias=True), ("packed", OTHERS[-1], OTHERS[-1]))
    (panel,) = linear.prepare()
    weight: Any = panel.weight
    for rows in (1, 130):
        tokens = quantized_input(linear, outlier_activation(rows, 64, seed=0))
        parts = (panel.scale, panel.zero, panel.sums)
        arguments = (tokens, weight.number, *parts, linear.bias, torch.bfloat16)
        torch.library.opcheck(chosen_linear, arguments)


@packed_needed
def test_a_pickle_of_a_mixture_computes_the_same() -> None:
    linear = chosen(packed_linear(shape=(7, 64)), ("packed", OTHERS[-1], OTHERS[-1]))
    tokens = quantized_input(linear, outlier_activation(20, 64, seed=0))
    linear.restore()
    size, expected = len(pickle.dumps(linear)), linear(tokens)
    content = pickle.dumps(linear)
    assert len(content) == size
    again = pickle.loads(content)
    assert torch.equal(again(tokens), expected)
    assert again.resident_bytes() == linear.resident_bytes()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, linear.state_dict()[name])


# Memory


@packed_needed
@pytest.mark.parametrize(
    ("packed_times", "other_times", "share"),
    [((1, 1, 1), (9, 9, 9), 1), ((1, 1, 1), (9, 9, 0.1), 3), ((9, 9, 9), (1, 1, 1), 2)],
)
def test_memory_is_planned_as_it_will_be(
    packed_times: tuple[float, ...], other_times: tuple[float, ...], share: int, times: Times
) -> None:
    """In packed bytes: half a byte for the packed form, a byte for the other."""
    times.seconds.update({"packed": packed_times, "fbgemm": other_times})
    linear = packed_linear(shape=(64, 512))
    packed = linear.qweight.nbytes
    planned = bytes_at_work(linear, CPU)
    assert planned == share * packed
    configure_site(site(linear), [linear], Execution())
    small = linear.resident_bytes() - packed
    linear(quantized_input(linear, outlier_activation(20, 512, seed=0)))
    made = 64 * (4 + 4)  # what the product needs of every output besides
    assert linear.resident_bytes() == planned + small + made


@packed_needed
def test_packed_weights_are_never_laid_out_beside(times: Times) -> None:
    times.seconds["fbgemm"] = (0.1, 0.1, 0.1)
    linear = packed_linear(shape=(64, 512))
    configure_site(site(linear), [linear], Execution("integer", "packed"))
    assert bytes_at_work(linear, CPU) == linear.qweight.nbytes
    linear(quantized_input(linear, outlier_activation(200, 512, seed=0)))
    assert [panel.weight.num_bytes for panel in linear.prepare()] == [0]
    linear.choice = Choice(True, ("fbgemm",) * 3)  # even where one was made before
    linear.restore()
    assert [panel.weight.num_bytes for panel in linear.prepare()] == [0]
