"""Values have the shape that a type says, or the first place that has not is named."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duquant.json_shapes import shaped


class Peak(TypedDict):
    before: float


class Noted(Peak, total=False):
    note: str


@dataclass
class Point:
    x: int
    labels: list[str] = field(default_factory=list)
    weight: float | None = None


class Record(TypedDict):
    peaks: dict[str, Noted]
    point: Point
    mode: Literal["single", "pairwise"]
    free: Any


GOOD: dict[str, Any] = {
    "peaks": {"q": {"before": 1, "note": "a"}, "k": {"before": 0.5, "else": [None]}},
    "point": {"x": 3, "labels": ["é"]},
    "mode": "single",
    "free": [1, {"a": None}],
    "unknown": True,
}


WRONG: dict[str, tuple[str, Any, str]] = {
    "missing key": ("mode", None, "mode must be one of single, pairwise, not null"),
    "literal": ("mode", "both", 'mode must be one of single, pairwise, not "both"'),
    "deep key": ("peaks", {"q": {}}, "peaks.q.before is missing"),
    "deep type": ("peaks", {"q": {"before": "1"}}, 'peaks.q.before must be a number, not "1"'),
    "bool is no number": ("peaks", {"q": {"before": True}}, "must be a number, not true"),
    "bool is no integer": ("point", {"x": True}, "point.x must be a whole number"),
    "float is no integer": ("point", {"x": 1.0}, "point.x must be a whole number"),
    "huge integer": ("point", {"x": 1 << 63}, "point.x must be a whole number of at most 64 bits"),
    "huge float": ("peaks", {"q": {"before": 1 << 63}}, "peaks.q.before must be a number"),
    "element": ("point", {"x": 1, "labels": ["a", 2]}, "point.labels[1] must be text, not 2"),
    "unknown field": ("point", {"x": 1, "y": 2}, "point.y is not known"),
    "union": ("point", {"x": 1, "weight": []}, "point.weight must be a number, not a list"),
    "optional key": ("peaks", {"q": {"before": 1, "note": 2}}, "peaks.q.note must be text"),
    "long value": ("mode", "x" * 1000, "…"),
    "long key": ("peaks", {"x\n" * 1000: 1}, "…"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_the_place_that_does_not_fit_is_named(case: str) -> None:
    key, value, complaint = WRONG[case]
    with pytest.raises(ValueError, match=r"must be|is missing|is not known") as refused:
        shaped({**GOOD, key: value}, Record)
    assert complaint in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 200


PLAIN_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    PLAIN_VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(VALUES, st.sampled_from([Record, Point, Noted, dict[str, int], list[float], int | None]))
def test_a_shape_refuses_or_holds(values: Any, shape: Any) -> None:
    """Nothing but ValueError, whatever the values."""
    try:
        found = shaped(values, shape)
    except ValueError as error:
        refused = str(error)
    else:
        assert found == (Point(**values) if shape is Point else values)
        return
    assert refused.isprintable()
