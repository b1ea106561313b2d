"""What decides the results of an evaluation, as its files hold it."""

from typing import TypedDict


class PartSettings(TypedDict, total=False):
    """What decides a part's numbers, as far as anybody reads it again."""

    limit: int | None
    seed: int
    lm_eval: str


class Evaluated(TypedDict):
    """What decides the results of a command."""

    parts: dict[str, PartSettings]
