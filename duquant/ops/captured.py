"""Many steps of the same shapes, asked of a GPU once and repeated as a CUDA graph.

It takes the host longer to ask for a step of many small kernels than the GPU to compute it. A graph
of them is asked for at once. **This has not run on a GPU yet**: steps that cannot be captured, or
whose graph computes anything else than the step, are asked for one by one.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

State = TypeVar("State", bound=tuple[Tensor, ...])


def repeated(step: Callable[[State], State], state: State, count: int) -> State:
    """``step(step(… step(state)))``.

    Args:
        step: its result's tensors have shapes, dtypes and device of its argument's; it changes
            nothing, and never waits for the device.
        state: what the first step is given, a named tuple; stays as it is.
        count: how many steps. With a graph the host waits twice: PyTorch before it captures, and
            here to compare the first step.
    """
    if state[0].device.type == "cuda":
        return _as_graph(step, state, count)
    return _one_by_one(step, state, count)


def _one_by_one(step: Callable[[State], State], state: State, count: int) -> State:
    for _ in range(count):
        state = step(state)
    return state


def _as_graph(step: Callable[[State], State], state: State, count: int) -> State:
    if count < 3:  # the first two are asked for one by one
        return _one_by_one(step, state, count)
    state = step(state)  # at first use libraries do what no graph can hold
    held = _copied(state)
    try:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(state[0].device)  # PyTorch's own is of the first GPU to capture
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            _write(held, step(held))
        _write(held, state)
        graph.replay()
    except RuntimeError:
        return _one_by_one(step, state, count - 1)
    state = step(state)
    are_equal = [(one == other).all() for one, other in zip(held, state, strict=True)]
    if not torch.stack(are_equal).all():
        return _one_by_one(step, state, count - 2)
    for _ in range(count - 2):
        graph.replay()
    return held


def _copied(state: State) -> State:
    make: Callable[..., State] = getattr(type(state), "_make", type(state))
    return make([each.clone() for each in state])


def _write(places: State, values: State) -> None:
    for place, value in zip(places, values, strict=True):
        place.copy_(value)
