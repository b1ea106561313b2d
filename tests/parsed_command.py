"""What the command line makes of its arguments, without doing it.

The parser is built once: that takes half a second, and every command would build it anew.
"""

import functools
import sys
from typing import Any

import pytest

import cli


def parsed(*command: str) -> dict[str, Any]:
    """Values of every option of a subcommand."""
    values: dict[str, Any] = _parser().parse_args(list(command))[command[0]].as_dict()
    return values


@functools.cache
def _parser() -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli.DuQuantCLI, "instantiate_classes", lambda self: None)
        patched.setattr(cli.DuQuantCLI, "_run_subcommand", lambda self, subcommand: None)
        patched.setattr(sys, "argv", ["cli.py", "report", "run"])
        return cli.build().parser
