"""How many kernels an operator launches on a GPU that has Triton, from the shapes of its arguments.

``interpreted_transformed.py`` counts some of them in Triton's interpreter.
"""

from collections.abc import Callable, Sequence

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
}
