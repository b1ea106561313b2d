"""Steps as a CUDA graph, with something that stands for CUDA: the GPU itself is not tested."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from duquant.ops import captured


class Pair(NamedTuple):
    """The last two numbers of a sequence."""

    before: Tensor
    last: Tensor


class Steps:
    """Steps of a sequence.

    Attributes:
        given: what every step was given.
    """

    def __init__(self) -> None:
        self.given: list[Pair] = []

    def __call__(self, pair: Pair) -> Pair:
        self.given.append(pair)
        return Pair(pair.last, pair.before + pair.last)


class Graph:
    """What is captured repeats a change of the tensors that were held.

    Attributes:
        replays: how often.
    """

    replays = 0
    change: Callable[[], None]

    def replay(self) -> None:
        self.replays += 1
        self.change()


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch, steps: Steps) -> list[Graph]:
    """CUDA's graphs in their order; each computes its step.

    Nothing is captured but on a stream of the steps' own device.
    """
    made: list[Graph] = []

    def make() -> Graph:
        made.append(Graph())
        return made[-1]

    @contextmanager
    def capture(graph: Graph, stream: Any = None, **_: Any) -> Iterator[None]:
        assert stream == torch.device("cpu")
        yield
        held = steps.given[-1]

        def change() -> None:
            values = Pair(held.last.clone(), held.before + held.last)
            captured._write(held, values)

        graph.change = change

    monkeypatch.setattr(torch.cuda, "CUDAGraph", make)
    monkeypatch.setattr(torch.cuda, "Stream", torch.device)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return made


def start() -> Pair:
    return Pair(torch.zeros(1), torch.ones(1))


FIBONACCI = [1, 1, 2, 3, 5, 8, 13, 21, 34]


@pytest.mark.parametrize("count", range(9))
def test_a_graph_repeats_the_step(count: int, steps: Steps, graphs: list[Graph]) -> None:
    given = start()
    assert captured._as_graph(steps, given, count).last.item() == FIBONACCI[count]
    assert [each.item() for each in given] == [0, 1]
    assert [graph.replays for graph in graphs] == ([count - 1] if count > 2 else [])


@pytest.mark.parametrize("count", range(9))
def test_a_graph_that_computes_anything_else_is_not_used(
    count: int, steps: Steps, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Graph, "replay", lambda graph: None)
    assert captured._as_graph(steps, start(), count).last.item() == FIBONACCI[count]


def test_the_first_step_is_compared_by_one_wait(
    steps: Steps, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a graph, which has two tensors to compare."""
    waits: list[Tensor] = []
    original = Tensor.__bool__

    def noting(tensor: Tensor) -> bool:
        waits.append(tensor)
        return original(tensor)

    monkeypatch.setattr(Tensor, "__bool__", noting)
    monkeypatch.setattr(torch, "equal", lambda *_: pytest.fail("waits for every tensor"))
    assert captured._as_graph(steps, start(), 8).last.item() == FIBONACCI[8]
    assert len(waits) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine on which capturing fails")
@pytest.mark.parametrize("count", range(9))
def test_steps_that_cannot_be_captured_are_asked_for_one_by_one(count: int, steps: Steps) -> None:
    given = start()
    assert captured._as_graph(steps, given, count).last.item() == FIBONACCI[count]
    assert captured.repeated(steps, given, count).last.item() == FIBONACCI[count]
