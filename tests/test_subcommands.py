"""Functions, classes and tables of both become subcommands."""

from dataclasses import dataclass

import pytest
from jsonargparse import ArgumentParser

from duquant.subcommands import Subcommands, add_subcommand_table, run_subcommand

called: list[object] = []


def greet(name: str, config: str | None = None, loud: bool = False) -> None:
    """Greet somebody.

    Args:
        name: whom.
        config: a file.
        loud: shout.
    """
    called.append((name, config, loud))


@dataclass(frozen=True)
class Count:
    """Count up.

    Args:
        last: where it ends.
    """

    last: int = 3

    def __call__(self) -> None:
        """Count."""
        called.append(self.last)


SUBCOMMANDS: Subcommands = {"greet": greet, "numbers": {"count": Count}}


@pytest.fixture
def parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    add_subcommand_table(
        parser.add_subcommands(), SUBCOMMANDS, {"numbers": "Numbers."}, ArgumentParser
    )
    called.clear()
    return parser


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["greet", "--name", "Ada"], ("Ada", None, False)),
        (["greet", "--name", "Ada", "--loud", "-c", "file"], ("Ada", "file", True)),
        (["greet", "--name", "Ada", "--config", "file"], ("Ada", "file", False)),
        (["numbers", "count"], 3),
        (["numbers", "count", "--last", "5"], 5),
    ],
)
def test_the_verb_is_called_with_its_options(
    arguments: list[str], expected: object, parser: ArgumentParser
) -> None:
    options = parser.instantiate_classes(parser.parse_args(arguments))
    run_subcommand(SUBCOMMANDS, options)
    assert called == [expected]


def test_help_is_the_docstring(parser: ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--help"], ["Greet somebody.", "Numbers."]),
        (["greet", "--help"], ["Greet somebody.", "whom.", "-c CONFIG", "shout."]),
        (["numbers", "count", "--help"], ["Count up.", "where it ends."]),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
        shown = " ".join(capsys.readouterr().out.split())
        for word in words:
            assert word in shown
