"""The parser of the command line: whole names of options, mistakes in one line.

What is read as YAML, files and values of options alike, is bounded first, see
:mod:`duquant.yaml_bounds`. A mistake in a file of options names that file.
"""

import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from callbacks.endings import fail
from duquant.plain_text import in_one_line, shortened
from duquant.yaml_bounds import require_bounded_yaml

FORMS = {
    "data.validation": "a mapping of names to texts, {mine: my_test.txt}",
    "model.pretrained": "a model directory or a hub id",
}
"""What options look like whose type says too little."""
parse_yaml = get_loader("yaml")


class OneLineParser(LightningArgumentParser):
    """Takes whole names of options only, and reports a wrong one in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self._file: str | None = None
        set_loader("yaml", parse_bounded, (yaml.YAMLError,))

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Parse, unless the value of an option has no end."""
        for text in sys.argv[1:] if args is None else args:
            option, is_pair, value = str(text).partition("=")
            for part in (option, value) if is_pair else (option,):
                with suppress(yaml.YAMLError):  # most values are no YAML, and need not be
                    try:
                        require_bounded_yaml(part)
                    except ValueError as error:
                        self.error(f"{shortened(text, 40)}: {error}", error)
        return super().parse_args(args, *rest, **kwargs)

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Parse a file of options; a mistake in it names the file."""
        outer, self._file = self._file, str(path)
        try:
            parsed: Namespace = super().parse_path(path, *args, **kwargs)
            return parsed
        except UnicodeDecodeError as error:
            self.error(f"it is not UTF-8 text (byte {error.start})", error)
        finally:
            self._file = outer

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the innermost reason, or the form an option must have, and leave with status 2."""
        wanted = (f"{key} must be {form}" for key, form in FORMS.items() if f'"{key}"' in message)
        place = "" if self._file is None else f"{self._file}: "
        fail(place + next(wanted, message))


def parse_bounded(text: str) -> Any:
    """Parse YAML, unless it would have no end.

    Raises:
        yaml.YAMLError: if it cannot or must not be parsed.
    """
    try:
        require_bounded_yaml(text)
        return parse_yaml(text)
    except (ValueError, yaml.YAMLError) as error:  # ValueError: a date, a number of many digits
        raise yaml.YAMLError(in_one_line(error)) from error
