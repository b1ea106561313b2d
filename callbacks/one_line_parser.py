"""The parser of the command line: whole names of options, mistakes in one line."""

from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from callbacks.endings import fail

FORMS = {
    "data.validation": "a mapping of names to texts, {mine: my_test.txt}",
    "model.pretrained": "a model directory or a hub id",
}
"""What options look like whose type says too little."""


class OneLineParser(LightningArgumentParser):
    """Takes whole names of options only, and reports a wrong one in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the innermost reason, or the form an option must have, and leave with status 2."""
        wanted = (f"{key} must be {form}" for key, form in FORMS.items() if f'"{key}"' in message)
        fail(next(wanted, message))
