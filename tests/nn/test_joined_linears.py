"""Linears of one site, multiplied as one, beside each of them multiplied alone."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from torch import Tensor

from duquant.nn.execution import Execution
from duquant.nn.joined_linears import FEW_TOKENS, JoinedLinears, are_multiplied_packed, join
from duquant.nn.packed_linear import PackedLinear
from duquant.ops.kernel_presence import has_kernel
from tests.nn.test_packed_linear import packed_linear, quantized_input
from tests.outliers import outlier_activation

WIDTH = 128
OUTPUTS = (48, 16, 16)
packed_kernel_needed = pytest.mark.skipif(
    not has_kernel("packed_linear", "cpu"), reason="no kernel reads packed weights here"
)


def readers(
    *, bias: bool = False, dtype: torch.dtype = torch.float32, bits: int = 4
) -> list[PackedLinear]:
    """Linears of the same inputs whose weights differ."""
    generator = torch.Generator().manual_seed(3)
    linears = [
        packed_linear(
            bits,
            shape=(out, WIDTH),
            bias=bias,
            dtype=dtype,
            weight=torch.randn(out, WIDTH, generator=generator),
        )
        for out in OUTPUTS
    ]
    for linear in linears:
        linear.execution = Execution("integer", "packed")
    return linears


def shared(linears: list[PackedLinear]) -> list[PackedLinear]:
    together = JoinedLinears(linears)
    for linear in linears:
        linear.shared = together
    return linears


def tokens_for(linear: PackedLinear, rows: int = 3) -> Tensor:
    return quantized_input(linear, outlier_activation(rows, WIDTH, seed=rows).unsqueeze(0))


def made(linear: PackedLinear) -> bool:
    assert isinstance(linear.shared, JoinedLinears)
    return linear.shared.is_made


@packed_kernel_needed
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_outputs_are_those_of_each_alone(rows: int, dtype: torch.dtype, bias: bool) -> None:
    alone, together = readers(bias=bias, dtype=dtype), shared(readers(bias=bias, dtype=dtype))
    tokens = tokens_for(alone[0], rows)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one(tokens), other(tokens))
    assert made(together[0])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_whoever_is_called_first_multiplies_for_all(
    order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    linears = shared(readers())
    tokens = tokens_for(linears[0])
    expected = [linear(tokens) for linear in readers()]
    monkeypatch.setattr("duquant.nn.packed_linear.integer_linear", counted := Counted())
    for _ in range(2):
        for index in order:
            assert torch.equal(linears[index](tokens), expected[index])
    assert counted.rows == [sum(OUTPUTS)] * 2


def test_many_tokens_are_multiplied_by_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    linears = shared(readers())
    monkeypatch.setattr("duquant.nn.packed_linear.integer_linear", counted := Counted())
    for count in (FEW_TOKENS, FEW_TOKENS + 1):
        tokens = tokens_for(linears[0], count)
        for linear in linears:
            linear(tokens)
    assert counted.rows == [sum(OUTPUTS), *OUTPUTS]


class Counted:
    """``integer_linear`` that notes how many outputs each call makes."""

    def __init__(self) -> None:
        from duquant.ops.integer_linear import integer_linear

        self.function, self.rows = integer_linear, list[int]()

    def __call__(self, tokens: Tensor, panels: list, *rest: object) -> Tensor:  # type: ignore[type-arg]
        self.rows.append(len(panels[0].scale))
        return self.function(tokens, panels, *rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [(2, 1, 0), (1,), (2,), (0, 0), (1, 0, 2), (0, 2, 1), (0, 2, 2)])
def test_any_order_of_calls_gives_the_same(order: tuple[int, ...]) -> None:
    linears, alone = shared(readers()), readers()
    tokens = tokens_for(linears[0])
    for index in order:
        assert torch.equal(linears[index](tokens), alone[index](tokens))


@pytest.mark.parametrize("order", [(0, 0), (0, 1, 0), (1, 2, 1)])
def test_where_outputs_are_left_each_multiplies_alone(
    order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    linears = shared(readers())
    tokens = tokens_for(linears[0])
    for index in order:
        linears[index](tokens)
    assert not made(linears[0])
    monkeypatch.setattr("duquant.nn.packed_linear.integer_linear", counted := Counted())
    for linear in linears:
        linear(tokens)
    assert counted.rows == list(OUTPUTS)


def test_other_tokens_are_not_taken_for_those_that_were_multiplied() -> None:
    linears, alone = shared(readers()), readers()
    tokens, others = tokens_for(linears[0], 4), tokens_for(linears[0], 4).flip(1)
    linears[0](tokens)
    assert torch.equal(linears[1](others), alone[1](others))
    assert torch.equal(linears[2](others), alone[2](others))
    assert torch.equal(linears[1](tokens), alone[1](tokens))


def test_the_last_one_lets_go_of_tokens_and_outputs() -> None:
    linears = shared(readers())
    tokens = tokens_for(linears[0])
    for linear in linears:
        linear(tokens)
    reference = weakref.ref(tokens)
    del tokens
    gc.collect()
    assert reference() is None


def test_parts_are_rows_of_the_whole_and_take_no_memory_twice() -> None:
    linears, before = shared(readers()), readers()
    tokens = tokens_for(linears[0])
    for linear in linears:
        linear(tokens)
    storages = {linear.get_buffer("packed").untyped_storage().data_ptr() for linear in linears}
    assert len(storages) == 1
    for linear, old in zip(linears, before, strict=True):
        old.prepare()
        assert linear.resident_bytes() == old.resident_bytes()
        assert linear.state_dict().keys() == old.state_dict().keys()
        for name, tensor in linear.state_dict().items():
            assert torch.equal(tensor, old.state_dict()[name]), name


@packed_kernel_needed
def test_who_multiplied_alone_before_lets_go_of_the_old_tensors() -> None:
    linears = readers()
    for linear in linears:
        linear.prepare()
    old = [weakref.ref(linear.get_buffer("packed")) for linear in linears]
    shared(linears)[0](tokens_for(linears[0]))
    assert made(linears[0])
    gc.collect()
    assert [reference() for reference in old] == [None] * len(old)


@packed_kernel_needed
def test_inference_mode_leaves_ordinary_tensors() -> None:
    """Others cannot be loaded into."""
    linears, others = shared(readers()), readers()
    tokens = tokens_for(linears[0])
    with torch.inference_mode():
        linears[0](tokens)
    assert made(linears[0])
    for linear, other in zip(linears, others, strict=True):
        other.scale.mul_(2)
        linear.load_state_dict(other.state_dict())
        assert torch.equal(linear(tokens), other(tokens))


@packed_kernel_needed
def test_of_many_tokens_they_compile_whole_behind_a_few() -> None:
    linears, alone = shared(readers()), readers()
    few, many = tokens_for(linears[0]), tokens_for(linears[0], FEW_TOKENS + 1)
    for linear in linears:
        linear(few)
    compiled = torch.compile(
        lambda tokens: [linear(tokens) for linear in linears], fullgraph=True, backend="eager"
    )
    for tokens in (many, few):
        assert all(map(torch.equal, compiled(tokens), [linear(tokens) for linear in alone]))
    assert made(linears[0])


@packed_kernel_needed
def test_moved_to_where_nothing_reads_packed_weights_each_multiplies_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layout then takes the place of the packed weight."""
    linears, alone = readers(), readers()
    for linear in linears:
        linear.execution = Execution("integer", "fast")
    assert are_multiplied_packed(linears)
    shared(linears)
    tokens = tokens_for(linears[0])
    expected = [linear(tokens) for linear in alone]
    monkeypatch.setattr("duquant.nn.layouts.reads_packed", lambda **_: False)
    assert all(map(torch.equal, [linear(tokens) for linear in linears], expected))
    assert not made(linears[0])
    assert [linear.packed for linear in linears] == [None] * len(linears)


def test_weights_that_are_loaded_later_are_the_ones_multiplied() -> None:
    linears = shared(readers())
    tokens = tokens_for(linears[0])
    for linear in linears:
        linear(tokens)
    others = readers()
    for linear, other in zip(linears, others, strict=True):
        other.scale.mul_(2)
        linear.load_state_dict(other.state_dict())
    for linear, other in zip(linears, others, strict=True):
        assert torch.equal(linear(tokens), other(tokens))


def test_a_cast_changes_what_is_written() -> None:
    linears = shared(readers())
    tokens = tokens_for(linears[0])
    for linear in linears:
        linear(tokens)
        linear.to(torch.bfloat16)
    assert [linear(tokens).dtype for linear in linears] == [torch.bfloat16] * len(linears)


def test_a_copy_multiplies_by_itself() -> None:
    linears = shared(readers())
    tokens = tokens_for(linears[0])
    expected = [linear(tokens) for linear in linears]
    copied = copy.deepcopy(linears[1])
    assert copied.shared is None
    linears[1].scale.zero_()
    assert torch.equal(copied(tokens), expected[1])


def test_threads_do_not_see_each_others_outputs() -> None:
    linears, alone = shared(readers()), readers()
    given = [tokens_for(linears[0], rows) for rows in (2, 3, 5, 7)]
    expected = [[linear(tokens) for linear in alone] for tokens in given]
    wrong: list[int] = []

    def run(index: int) -> None:
        for _ in range(50):
            outputs = [linear(given[index]) for linear in linears]
            if not all(map(torch.equal, outputs, expected[index])):
                wrong.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_has_no_common_form_is_not_joined() -> None:
    first = readers()[0]
    cast = copy.deepcopy(first).to(torch.bfloat16)
    for other in (readers(bias=True)[0], readers(bits=3)[0], cast):
        assert join([first, other]) is None
    linears = shared([first, readers(bias=True)[0]])
    tokens = tokens_for(first)
    for linear, alone in zip(linears, (readers()[0], readers(bias=True)[0]), strict=True):
        assert torch.equal(linear(tokens), alone(tokens))
    assert not made(first)


@packed_kernel_needed
def test_only_what_stays_packed_is_multiplied_as_one() -> None:
    assert are_multiplied_packed(readers())
    assert not are_multiplied_packed(readers(bits=3))
    linears = readers()
    linears[1].execution = Execution("reference")
    assert not are_multiplied_packed(linears)
