"""Rows of a table by name: what exists is built, what does not is named."""

from dataclasses import dataclass

import pytest

from duquant.registry import build_row


@dataclass(frozen=True)
class Plain:
    pass


@dataclass(frozen=True)
class Sized:
    size: int = 3

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1")


TABLE: dict[str, type[object]] = {"sized": Sized, "plain": Plain}


def test_options_are_the_fields() -> None:
    assert build_row("thing", TABLE, "sized", {}) == Sized()
    assert build_row("thing", TABLE, "sized", {"size": 5}) == Sized(5)
    assert build_row("thing", TABLE, "plain", {}) == Plain()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("size", {}, "there is no thing 'size'; there are plain, sized"),
        ("sized", {"bits": 4}, "sized has no bits to choose; its options are size"),
        ("plain", {"size": 4}, "plain has no size to choose; it has no options"),
        ("sized", {"size": 0}, "size is 0; it must be at least 1"),
    ],
)
def test_what_does_not_exist_is_refused(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        build_row("thing", TABLE, name, options)
