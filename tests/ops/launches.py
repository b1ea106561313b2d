"""How many kernels an operator launches on a GPU that has Triton, from the shapes of its arguments.

``interpreted_transformed.py`` and ``interpreted_sums.py`` count some in Triton's interpreter.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

Shapes = Sequence[Sequence[int]]
"""Of an operator's arguments; what is no tensor has none."""

LAUNCHES: dict[str, Callable[[Shapes], int]] = {
    "duquant::transform_rows": lambda shapes: shapes[1][0],  # one for each rotation
    "duquant::fake_quantize_rows": lambda shapes: 1,
    "duquant::quantize_rows_gradient": lambda shapes: 1,
    "duquant::quantize_tokens": lambda shapes: 1,
    "duquant::transformed_tokens": lambda shapes: max(2, shapes[2][0]),  # of few tokens
    "duquant::transformed_values": lambda shapes: 1,
    "duquant::packed_linear": lambda shapes: 1,  # of few tokens
    "duquant::scaled_sums": lambda shapes: 1,
}


def noted_launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list to which the interpreter adds the name of every kernel that it launches."""
    from triton.runtime.interpreter import GridExecutor

    names: list[str] = []
    call = GridExecutor.__call__

    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        names.append(self.fn.__name__)
        return call(self, *arguments, **options)

    monkeypatch.setattr(GridExecutor, "__call__", noted)
    return names
