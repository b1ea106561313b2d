"""Rows of a table, built by name: how a recipe's words become objects.

A table maps the names that recipes use to frozen dataclasses, whose fields are the options.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

Row = TypeVar("Row")


def build_row(noun: str, table: Mapping[str, type[Row]], name: str, options: dict[str, Any]) -> Row:
    """Build the row that is called ``name``.

    Args:
        noun: what the table's rows are, for messages.
        table: dataclasses by name.
        name: the row.
        options: values for fields of its dataclass.

    Raises:
        ValueError: for a name that is not in the table, naming those that are; for an option that
            the row lacks, naming those that it has; for a value that the row refuses.
    """
    if name not in table:
        raise ValueError(f"there is no {noun} {name!r}; there are {', '.join(sorted(table))}")
    known = [field.name for field in fields(table[name])]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise ValueError(f"{name} has no {option} to choose; {has}")
    return table[name](**options)
