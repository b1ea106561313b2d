"""What JSON values must look like, said by a Python type, which a type checker knows as well.

========================  ==========================================================================
``dict[str, X]``          any keys
``list[X]``               any length
a ``TypedDict``           these keys and any others: a newer version may have added some
a dataclass               its fields and no others, so that ``Class(**values)`` builds it
``str``, ``bool``         as they are
``int``                   no bool, at most 64 bits
``float``                 a number, whole or not
``Literal``, ``X | None`` one of the values; ``null`` or an ``X``
``Any``                   whatever it is
========================  ==========================================================================
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

LARGEST_INTEGER = 1 << 63
PLAIN: Mapping[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number of at most 64 bits",
    float: "a number",
    dict: "a mapping",
    list: "a list",
}
"""What a message calls a type."""


def require_shape(values: Any, shape: Any) -> None:
    """Check parsed values against a shape.

    Raises:
        ValueError: naming the first place that does not fit, and what it must be.
    """
    wrong = _mismatch(values, shape, "")
    if wrong is not None:
        raise ValueError(wrong)


def _mismatch(value: Any, shape: Any, place: str) -> str | None:
    """What is wrong with ``value`` at ``place``; ``None`` if it fits."""
    origin, inner = get_origin(shape), get_args(shape)
    if shape is Any:
        return None
    if origin in (Union, UnionType):
        return _mismatch_of_union(value, inner, place)
    if origin is Literal:
        words = "one of " + ", ".join(map(str, inner))
        return None if value in inner else _complain(value, words, place)
    if is_typeddict(shape) or dataclasses.is_dataclass(shape):
        return _mismatch_of_fields(value, shape, place)
    kind = origin or shape
    if not _is_plain(value, kind):
        return _complain(value, PLAIN[kind], place)
    if kind is dict and inner:
        return _first(_mismatch(v, inner[1], _join(place, key)) for key, v in value.items())
    if kind is list and inner:
        return _first(_mismatch(v, inner[0], f"{place}[{n}]") for n, v in enumerate(value))
    return None


def _mismatch_of_union(value: Any, shapes: tuple[Any, ...], place: str) -> str | None:
    if value is None and NoneType in shapes:
        return None
    found = [_mismatch(value, shape, place) for shape in shapes if shape is not NoneType]
    return None if None in found else found[-1]


def _mismatch_of_fields(value: Any, shape: Any, place: str) -> str | None:
    if not isinstance(value, dict):
        return _complain(value, PLAIN[dict], place)
    types = get_type_hints(shape)
    if is_typeddict(shape):
        required = set(shape.__required_keys__)
    else:
        required = {f.name for f in dataclasses.fields(shape) if _is_required(f)}
        unknown = sorted(value.keys() - types.keys())
        if unknown:
            return f"{_join(place, unknown[0])} is not known"
    missing = sorted(required - value.keys())
    if missing:
        return f"{_join(place, missing[0])} is missing"
    return _first(
        _mismatch(v, types[key], _join(place, key)) for key, v in value.items() if key in types
    )


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _is_plain(value: Any, kind: Any) -> bool:
    if kind not in (int, float):
        return isinstance(value, kind)
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) < LARGEST_INTEGER
    return kind is float and isinstance(value, float)


def _complain(value: Any, wanted: str, place: str) -> str:
    given = PLAIN[type(value)] if isinstance(value, dict | list) else _shorten(json.dumps(value))
    return f"{place or 'it'} must be {wanted}, not {given}"


def _join(place: str, key: str) -> str:
    return f"{place}.{_shorten(key)}" if place else _shorten(key)


def _shorten(text: str) -> str:
    """At most 40 characters of it, without line breaks and what else does not print."""
    text = "".join(c if c.isprintable() else "?" for c in text[:41])
    return text if len(text) <= 40 else f"{text[:39]}…"


def _first(complaints: Iterator[str | None]) -> str | None:
    return next((complaint for complaint in complaints if complaint is not None), None)
