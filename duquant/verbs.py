"""Subcommands without a Trainer: typed functions and classes become options of the command line.

A verb is a function whose signature and docstring are its options, a class of options whose objects
are called, or a table of further verbs. Their modules import what is slow only when they are
called, because the command line reads the signatures of all of them.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Union

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser, Namespace

Verb = Callable[..., Any]
Verbs = Mapping[str, Union[Verb, "Verbs"]]


def add_verbs(chooser: Any, verbs: Verbs, parser_class: type[ArgumentParser]) -> None:
    """Add subcommands.

    Args:
        chooser: what ``parser.add_subcommands()`` gives.
        verbs: what is added.
        parser_class: how each of them is parsed.
    """
    for name, verb in verbs.items():
        if isinstance(verb, Mapping):
            parser = parser_class()
            chooser.add_subcommand(name, parser, help=", ".join(verb))
            add_verbs(parser.add_subcommands(), verb, parser_class)
        else:
            about = docstring_parser.parse(verb.__doc__ or "")
            parser = parser_class(description=about.short_description or "")
            add_options(parser, verb)
            chooser.add_subcommand(name, parser, help=about.short_description)


def add_options(parser: ArgumentParser, verb: Verb) -> None:
    """Turn a signature into options: a bool into a flag, ``config`` also into ``-c``."""
    help_of = {p.arg_name: p.description for p in docstring_parser.parse(verb.__doc__ or "").params}
    flags = {n for n, p in inspect.signature(verb).parameters.items() if p.annotation is bool}
    short = {"config"}.intersection(inspect.signature(verb).parameters)
    add = parser.add_class_arguments if isinstance(verb, type) else parser.add_function_arguments
    add(verb, as_group=False, skip={*flags, *short})
    for name in sorted(short):
        parser.add_argument("-c", f"--{name}", type=str, default=None, help=help_of[name])
    for name in sorted(flags):
        parser.add_argument(f"--{name}", action=ActionYesNo, default=False, help=help_of[name])


def run_verb(verb: Verb | Verbs, options: Namespace) -> None:
    """Call the function that the command line chose with its options."""
    if isinstance(verb, Mapping):
        run_verb(verb[options.subcommand], options[options.subcommand])
    else:
        made = verb(**{n: options[n] for n in inspect.signature(verb).parameters})
        if isinstance(verb, type):
            made()
