"""The part of the root LightningModule that measures: perplexity of every variant of the model."""

from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path

import torch
from lightning import LightningModule
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.evaluation.perplexity import Perplexity, stream_losses
from duquant.export.model_directory import ModelDirectory
from duquant.model.decoder import Decoder
from duquant.modules.variants import (
    FULL_PRECISION,
    QUANTIZED,
    ROUND_TO_NEAREST,
    load_variants,
)


class MeasuredModel(LightningModule):
    """Perplexity of the original, of plain rounding, and of the quantized model."""

    recipe: Recipe
    decoder: Decoder
    directory: ModelDirectory
    output_dir: Path
    report_round_to_nearest: bool

    def __init__(self) -> None:
        super().__init__()
        self.known_full_precision: dict[str, float] = {}
        self.perplexities: dict[str, dict[str, float]] = {}
        self.on_block_evaluated: Callable[[int], None] | None = None
        self._metrics: dict[str, dict[str, Perplexity]] = {}

    @property
    def num_blocks(self) -> int:
        """Decoder blocks of the model."""
        return self.decoder.num_blocks

    @property
    def variants(self) -> tuple[str, ...]:
        """Variants of the model that are compared."""
        plain = (ROUND_TO_NEAREST,) if self.report_round_to_nearest else ()
        return (FULL_PRECISION, *plain, QUANTIZED)

    def measured_variants(self, corpus: str) -> tuple[str, ...]:
        """Those that have to be measured on a corpus."""
        return self.variants[1 if corpus in self.known_full_precision else 0 :]

    def load_variants(
        self, index: int, wanted: Container[str] | None = None
    ) -> Iterator[tuple[str, nn.Module]]:
        """Block ``index`` of every variant, or of those wanted: see :func:`load_variants`."""
        names = self.variants if wanted is None else wanted
        return load_variants(names, index, self.decoder, self.directory, self.recipe)

    def on_validation_start(self) -> None:
        """Refuse to measure half a model, and begin new sums."""
        numbers = range(self.num_blocks)
        finished = sum(self.directory.block_file(index).is_file() for index in numbers)
        if finished < self.num_blocks or not self.directory.is_complete:
            missing = "" if finished < self.num_blocks else ", and is not complete yet"
            raise ValueError(
                f"{self.output_dir} holds {finished} of {self.num_blocks} quantized blocks"
                f"{missing}: run fit with --ckpt_path last to finish it"
            )
        self._metrics = {
            corpus: {v: Perplexity(self.device) for v in self.measured_variants(corpus)}
            for corpus in self.trainer.datamodule.validation  # type: ignore[attr-defined]
        }

    def validation_step(
        self, batch: tuple[Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Score a chunk of windows ``(windows, tokens)`` under every variant."""
        (windows,) = batch
        metrics = list(self._metrics.values())[dataloader_idx]
        if not len(windows):  # fewer windows than processes
            for metric in metrics.values():
                metric.update(torch.zeros(0, dtype=torch.float64, device=self.device))
            return
        losses = stream_losses(
            self.decoder,
            partial(self.load_variants, wanted=metrics),
            metrics,
            windows,
            self.device,
            on_block=self.on_block_evaluated,
            num_scored=self.trainer.datamodule.stride,  # type: ignore[attr-defined]
        )
        for variant, values in losses.items():
            metrics[variant].update(values.double().to(self.device))

    def on_validation_epoch_end(self) -> None:
        """Log and keep the perplexities by corpus and variant."""
        self.perplexities = {}
        for corpus, metrics in self._metrics.items():
            known = self.known_full_precision.get(corpus)
            values = {} if known is None else {FULL_PRECISION: known}
            values |= {v: metric.finite(f"{v}, {corpus}") for v, metric in metrics.items()}
            self.perplexities[corpus] = values
        for corpus, values in self.perplexities.items():
            for variant, perplexity in values.items():
                self.log(f"perplexity/{corpus}/{variant}", perplexity, rank_zero_only=True)
