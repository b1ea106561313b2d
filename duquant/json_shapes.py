"""JSON values as a Python type says they are, or a complaint about the first that is not.

========================  ==========================================================================
``dict[str, X]``          any keys
``list[X]``               any length
a ``TypedDict``           these keys and any others: a newer version may have added some
a dataclass               its fields and no others; it is built from them
``str``, ``bool``         as they are
``int``                   no bool, at most 64 bits
``float``                 a number, whole or not
``Literal``, ``X | None`` one of the values; ``null`` or an ``X``
``Any``                   whatever it is
========================  ==========================================================================
"""

import dataclasses
import json
from collections.abc import Mapping
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
LONGEST = 40
"""Characters of a key or value in a message."""


def shaped(value: Any, shape: Any, place: str = "") -> Any:
    """Check a parsed value, and build the dataclasses in it.

    Args:
        value: plain values.
        shape: the type they must have.
        place: what messages call the value.

    Returns:
        The same values, a dataclass where ``shape`` says so.

    Raises:
        ValueError: naming the first place that does not fit, and what it must be.
    """
    origin, inner = get_origin(shape), get_args(shape)
    if shape is Any:
        return value
    if origin in (Union, UnionType):
        return _shaped_by_one_of(value, inner, place)
    if origin is Literal:
        if value not in inner:
            raise _complaint(value, f"one of {', '.join(map(str, inner))}", place)
        return value
    if is_typeddict(shape) or dataclasses.is_dataclass(shape):
        return _shaped_fields(value, shape, place)
    kind = origin or shape
    if not _is_plain(value, kind):
        raise _complaint(value, PLAIN[kind], place)
    if kind is dict and inner:
        return {key: shaped(v, inner[1], _join(place, key)) for key, v in value.items()}
    if kind is list and inner:
        return [shaped(v, inner[0], f"{place}[{n}]") for n, v in enumerate(value)]
    return value


def _shaped_by_one_of(value: Any, shapes: tuple[Any, ...], place: str) -> Any:
    """By the first shape that fits; what is wrong with the last is the complaint."""
    if value is None and NoneType in shapes:
        return None
    *others, last = (shape for shape in shapes if shape is not NoneType)
    for shape in others:
        try:
            return shaped(value, shape, place)
        except ValueError:
            continue
    return shaped(value, last, place)


def _shaped_fields(value: Any, shape: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _complaint(value, PLAIN[dict], place)
    types = get_type_hints(shape)
    if is_typeddict(shape):
        required = set(shape.__required_keys__)
    else:
        required = {f.name for f in dataclasses.fields(shape) if _is_required(f)}
        unknown = sorted(value.keys() - types.keys())
        if unknown:
            raise ValueError(f"{_join(place, unknown[0])} is not known")
    missing = sorted(required - value.keys())
    if missing:
        raise ValueError(f"{_join(place, missing[0])} is missing")
    fields = {
        key: shaped(v, types[key], _join(place, key)) if key in types else v
        for key, v in value.items()
    }
    return fields if is_typeddict(shape) else shape(**fields)


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


def _complaint(value: Any, wanted: str, place: str) -> ValueError:
    given = PLAIN[type(value)] if isinstance(value, dict | list) else _shorten(json.dumps(value))
    return ValueError(f"{place or 'it'} must be {wanted}, not {given}")


def _join(place: str, key: str) -> str:
    return f"{place}.{_shorten(key)}" if place else _shorten(key)


def _shorten(text: str) -> str:
    """The beginning of it, without line breaks and what else does not print."""
    text = "".join(c if c.isprintable() else "?" for c in text[: LONGEST + 1])
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
