"""The root LightningModule: owns the blocks, knows which one is current, measures perplexity.

One ``Trainer.fit`` runs through all blocks, so there is one log, one checkpoint lineage, one
progress bar. All that is learned exists from the start and one optimizer holds it; parameters of
blocks that are not current have no gradient and are passed over. Which block is current
is a buffer of this module: it is restored before optimizers and data loaders are built.

Weights live in :class:`~duquant.model.decoder.Decoder`, outside of the module tree. When things
happen is decided by ``callbacks/block_progression.py``.
"""

from collections.abc import Callable, Container, Iterator
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.evaluation.perplexity import Perplexity, stream_losses
from duquant.export.model_directory import ModelDirectory
from duquant.model.batch import BlockBatch
from duquant.model.decoder import Decoder
from duquant.model.structure import linear_shapes, require_fitting_widths
from duquant.modules.block import QuantBlock, block_generator
from duquant.modules.block_optimizer import block_optimizer, merged_groups, set_learning_rate
from duquant.modules.variants import (
    FULL_PRECISION,
    QUANTIZED,
    ROUND_TO_NEAREST,
    load_variants,
)
from duquant.run_description import compare_runs
from duquant.user_paths import user_path


class LanguageModel(LightningModule):
    """A Hugging Face decoder on its way to a few bits.

    Args:
        pretrained: model directory, hub id, or "quickstart" for the embedded model.
        output_dir: the run's directory; the quantized model grows in its folder "model".
        dtype: dtype in which the model is read and run.
        seed: draws the random rotations (set by data.seed).
        report_round_to_nearest: also measure plain rounding to the same bits.
        reuse_full_precision: take the original's perplexity from an earlier run where nothing that
            decides it has changed.
        recipe: fields of :class:`duquant.config.Recipe`, which declares and documents them.

    Raises:
        ValueError: if the model cannot be found, read, or transformed with these settings.
    """

    block_index: Tensor

    def __init__(
        self,
        pretrained: str,
        output_dir: str = "runs/duquant",
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        seed: int = 2,
        report_round_to_nearest: bool = False,
        reuse_full_precision: bool = True,
        **recipe: Any,
    ) -> None:
        super().__init__()
        self.recipe = Recipe(**recipe)
        self.seed = seed
        self.report_round_to_nearest = report_round_to_nearest
        self.reuse_full_precision = reuse_full_precision
        self.known_full_precision: dict[str, float] = {}
        self.output_dir = user_path(output_dir)
        self.decoder = Decoder(pretrained, getattr(torch, dtype))
        require_fitting_widths(self.decoder.meta_block(), self.recipe)
        shapes = linear_shapes(self.decoder.meta_block())
        self.blocks = nn.ModuleList(
            QuantBlock(shapes, self.recipe, index) for index in range(self.decoder.num_blocks)
        )
        self.register_buffer("block_index", torch.zeros((), dtype=torch.int64, device="cpu"))
        self.directory = ModelDirectory(self.output_dir / "model", self.recipe)
        self.run_description: dict[str, Any] = {}
        self.perplexities: dict[str, dict[str, float]] = {}
        self.on_block_evaluated: Callable[[int], None] | None = None
        self._metrics: dict[str, dict[str, Perplexity]] = {}

    @property
    def num_blocks(self) -> int:
        """Decoder blocks of the model."""
        return len(self.blocks)

    @property
    def is_calibrated(self) -> bool:
        """Whether every block is finished."""
        return int(self.block_index) >= self.num_blocks

    @property
    def current_block(self) -> QuantBlock:
        """The block that is being calibrated; after the last one, the last."""
        return _quant_block(self.blocks[min(int(self.block_index), self.num_blocks - 1)])

    @property
    def epochs_per_block(self) -> int:
        """Epochs the trainer spends on a block; without LWC one, to have a step to checkpoint."""
        return self.recipe.lwc.epochs if self.recipe.has_lwc else 1

    @property
    def variants(self) -> tuple[str, ...]:
        """Variants of the model that are compared."""
        plain = (ROUND_TO_NEAREST,) if self.report_round_to_nearest else ()
        return (FULL_PRECISION, *plain, QUANTIZED)

    def measured_variants(self, corpus: str) -> tuple[str, ...]:
        """Those that have to be measured on a corpus."""
        return self.variants[1 if corpus in self.known_full_precision else 0 :]

    def generator(self, index: int) -> torch.Generator:
        """Randomness of block ``index``, the same in every run with this seed, resumed or not."""
        return block_generator(self.seed, index)

    def training_step(self, batch: BlockBatch, batch_idx: int) -> Tensor:
        """One LWC step of the current block; without LWC, a step that moves nothing."""
        if not self.recipe.has_lwc:
            return torch.zeros((), device=self.device, requires_grad=True)
        loss = self.current_block.training_step(batch, batch_idx)
        if self.current_block.step_loss.isfinite():
            self.log("lwc/loss", self.current_block.step_loss, prog_bar=True)
        return loss

    def on_train_batch_start(self, batch: BlockBatch, batch_idx: int) -> None:
        """Follow the current block's schedule."""
        set_learning_rate(self.trainer, self.recipe.lwc, batch_idx)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let no gradient that is not finite reach the factors."""
        self.current_block.drop_unusable_gradients()

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """One AdamW over what all blocks learn; none where nothing does."""
        groups = merged_groups([_quant_block(each).parameter_groups() for each in self.blocks])
        return block_optimizer(groups) if groups else None

    def load_variants(
        self, index: int, wanted: Container[str] | None = None
    ) -> Iterator[tuple[str, nn.Module]]:
        """Block ``index`` of every variant, or of those wanted: see :func:`load_variants`."""
        names = self.variants if wanted is None else wanted
        return load_variants(names, index, self.decoder, self.directory, self.recipe)

    def on_validation_start(self) -> None:
        """Refuse to measure half a model, and begin new sums."""
        finished = [self.directory.block_file(i).is_file() for i in range(self.num_blocks)]
        if not all(finished):
            raise ValueError(
                f"{self.output_dir} holds {sum(finished)} of {self.num_blocks} quantized blocks: "
                f"run fit with --ckpt_path last to finish it"
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the run is about, and of transforms that learn only the current block's."""
        checkpoint["duquant_run"] = self.run_description
        for name in self._transforms_elsewhere():
            del checkpoint["state_dict"][name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run; transforms that it does not hold stay as they are.

        Raises:
            ValueError: naming every difference.
        """
        differences = compare_runs(checkpoint.get("duquant_run", {}), self.run_description)
        if differences:
            raise ValueError(f"the checkpoint is of another run: {'; '.join(differences)}")
        stored, own = checkpoint.get("state_dict", {}), self.state_dict()
        for name in self._transforms_elsewhere(int(stored.get("block_index", 0))):
            stored[name] = own[name]

    def _transforms_elsewhere(self, current: int | None = None) -> list[str]:
        """Names of what transforms learn in blocks other than the current one.

        Those of finished blocks are in the blocks' files, and the others have not begun.
        """
        index = int(self.block_index) if current is None else current
        return [
            f"blocks.{number}.activation_side.transforms.{name}"
            for number, block in enumerate(self.blocks)
            if number != index
            for name, _ in _quant_block(block).activation_side.transforms.named_parameters()
        ]


def _quant_block(block: nn.Module) -> QuantBlock:
    assert isinstance(block, QuantBlock)
    return block
