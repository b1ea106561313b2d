"""Full precision is measured once per model and text, not in every run.

What earlier runs kept is looked up when a fit begins, for the estimate of its time, and again when
the measurement begins; what this run measures is kept for later ones.
"""

from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from duquant.data.datamodule import CalibrationDataModule
from duquant.evaluation.known_perplexity import KnownPerplexity
from duquant.modules.language_model import LanguageModel
from duquant.modules.variants import FULL_PRECISION
from duquant.terminal import say


class KnownFullPrecision(Callback):
    """Tells a :class:`LanguageModel` which full-precision perplexities are known already.

    Args:
        console: where to print (default: standard error).
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up, so that the estimate is one of what will be measured."""
        self._look_up(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up what need not be measured, and say so."""
        known = self._look_up(trainer, pl_module)
        if known and trainer.is_global_zero:
            say(
                f"full precision on {', '.join(known)} is known from an earlier run of this model; "
                f"--model.reuse_full_precision false measures it again",
                self.console,
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what was measured."""
        assert isinstance(pl_module, LanguageModel)
        if not trainer.is_global_zero or not pl_module.reuse_full_precision:
            return
        for corpus, entry in _entries(trainer, pl_module).items():
            if corpus not in pl_module.known_full_precision:
                entry.keep(pl_module.perplexities[corpus][FULL_PRECISION])

    def _look_up(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Process 0 decides for all of them: they must measure the same variants."""
        assert isinstance(pl_module, LanguageModel)
        if not pl_module.reuse_full_precision:
            return {}
        found: dict[str, float] = {}
        if trainer.is_global_zero:
            entries = _entries(trainer, pl_module)
            numbers = {corpus: entry.find() for corpus, entry in entries.items()}
            found = {corpus: known for corpus, known in numbers.items() if known is not None}
        known: dict[str, float] = trainer.strategy.broadcast(found)
        pl_module.known_full_precision = known
        return known


def _entries(trainer: Trainer, model: LanguageModel) -> dict[str, KnownPerplexity]:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, CalibrationDataModule)
    device = trainer.strategy.root_device
    return {
        corpus: KnownPerplexity(model.decoder, data, corpus, device) for corpus in data.validation
    }
