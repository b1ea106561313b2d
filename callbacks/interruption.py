"""Control-C and SIGTERM during a fit or a validation: one line that says how to continue."""

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from duquant.interruption import how_to_continue
from duquant.terminal import say


class Interruption(Callback):
    """Says how to continue; stands behind the progress, which closes its bar first.

    Args:
        console: where to print (default: standard error).
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say it once for all processes."""
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.is_global_zero:
            say(f"interrupted; {how_to_continue()}", self.console)
