"""Subcommands that are functions: signatures become options, docstrings their help.

What needs no Trainer needs no class either. ``mtbench answer`` and ``report`` are typed functions
that anybody can call; jsonargparse reads what they take. Where options are many, as for
``evaluate``, they are a class of their own, whose object is called.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Union

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter, Namespace

Subcommand = Callable[..., Any]
Subcommands = Mapping[str, Union[Subcommand, "Subcommands"]]
"""A function or a class by its name, or a table of further ones."""
PLAIN = {
    "<class 'Path'>": "path",
    "Optional[Literal['last']]": "'last' | null",
    "Optional[dict[str, str]]": "mapping | null",
    "Union[int, Literal['auto']]": "int | 'auto'",
    "default: )": "default: none)",
}
"""What a help says instead of Python's own names of types."""


class PlainHelp(DefaultHelpFormatter):
    """A help for people who do not read annotations."""

    def _expand_help(self, action: Any) -> str:
        text = super()._expand_help(action)
        for written, plain in PLAIN.items():
            text = text.replace(written, plain)
        return text


def add_subcommand_table(
    chooser: Any,
    subcommands: Subcommands,
    tables: Mapping[str, str],
    parser_class: type[ArgumentParser],
) -> None:
    """Add subcommands to what jsonargparse calls a subcommands action.

    Args:
        chooser: where the subcommands go.
        subcommands: functions, or tables of further ones, by name.
        tables: what each table is about.
        parser_class: parses every subcommand.
    """
    for name, subcommand in subcommands.items():
        if isinstance(subcommand, Mapping):
            parser = parser_class(description=tables[name])
            chooser.add_subcommand(name, parser, help=tables[name])
            add_subcommand_table(parser.add_subcommands(), subcommand, tables, parser_class)
        else:
            about = docstring_parser.parse(subcommand.__doc__ or "")
            parser = parser_class(description=about.short_description or "")
            add_options(parser, subcommand)
            chooser.add_subcommand(name, parser, help=about.short_description)


def add_options(parser: ArgumentParser, subcommand: Subcommand) -> None:
    """Turn a signature into options.

    A bool becomes a flag, ``config`` also ``-c``, and a list without a default the arguments that
    are no options.
    """
    help_of = {
        p.arg_name: p.description for p in docstring_parser.parse(subcommand.__doc__ or "").params
    }
    parameters = inspect.signature(subcommand).parameters
    flags = {name for name, p in parameters.items() if p.annotation is bool}
    short = {"config"}.intersection(parameters)
    bare = {n for n, p in parameters.items() if p.annotation == list[str] and p.default is p.empty}
    add = (
        parser.add_class_arguments
        if isinstance(subcommand, type)
        else parser.add_function_arguments
    )
    add(subcommand, as_group=False, skip={*flags, *short, *bare})
    for name in sorted(bare):
        parser.add_argument(name, nargs="+", type=str, help=help_of[name])
    for name in sorted(short):
        parser.add_argument("-c", f"--{name}", type=str, default=None, help=help_of[name])
    for name in sorted(flags):
        parser.add_argument(f"--{name}", action=ActionYesNo, default=False, help=help_of[name])


def run_subcommand(subcommand: Subcommand | Subcommands, options: Namespace) -> None:
    """Call the function that the command line chose with its options."""
    if isinstance(subcommand, Mapping):
        run_subcommand(subcommand[options.subcommand], options[options.subcommand])
    else:
        made = subcommand(**{n: options[n] for n in inspect.signature(subcommand).parameters})
        if isinstance(subcommand, type):
            made()
