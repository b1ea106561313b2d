"""The root LightningModule: owns what is learned, and knows whose turn it is.

One ``Trainer.fit`` runs through all blocks, so there is one log, one checkpoint lineage, one
progress bar. Every block has a turn, and behind the last one, if the recipe distils, the whole
model. All that is learned exists from the start and one optimizer holds it; parameters of turns
that are not current have no gradient and are passed over. Which turn is current is a number of this
module, ``block_index``: a checkpoint restores it before optimizers and data loaders are built.

Weights live in :class:`~duquant.model.decoder.Decoder`, outside of the module tree. When things
happen is decided by ``callbacks/block_progression.py``.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.export.float_tensors import float_shapes
from duquant.export.model_directory import ModelDirectory
from duquant.model.batch import BlockBatch
from duquant.model.decoder import Decoder
from duquant.model.structure import linear_shapes, require_fitting_widths
from duquant.modules.block import QuantBlock, block_generator
from duquant.modules.block_optimizer import block_optimizer, merged_groups
from duquant.modules.distillation import Distillation
from duquant.modules.learner import Learner
from duquant.modules.measured_model import MeasuredModel
from duquant.run_description import compare_runs
from duquant.user_paths import user_path


class LanguageModel(MeasuredModel):
    """A Hugging Face decoder on its way to a few bits.

    Args:
        pretrained: model directory, hub id, or "quickstart" for the embedded model.
        output_dir: the run's directory; the quantized model grows in its folder "model".
        dtype: dtype in which the model is read and run.
        seed: draws the random rotations (set by data.seed).
        report_round_to_nearest: also measure plain rounding to the same bits.
        reuse_full_precision: take the original's perplexity from an earlier run where nothing that
            decides it has changed.
        gradient_checkpointing: in the whole model's distillation, compute every block again in the
            backward pass instead of keeping its activations: the same result in less memory;
            without, a distillation step takes a fifth less time.
        recipe: fields of :class:`duquant.config.Recipe`, which declares and documents them.

    Raises:
        ValueError: if the model cannot be found, read, or transformed with these settings.
    """

    def __init__(
        self,
        pretrained: str,
        output_dir: str = "runs/duquant",
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        seed: int = 2,
        report_round_to_nearest: bool = False,
        reuse_full_precision: bool = True,
        gradient_checkpointing: bool = True,
        **recipe: Any,
    ) -> None:
        super().__init__()
        self.recipe = Recipe(**recipe)
        self.seed = seed
        self.report_round_to_nearest = report_round_to_nearest
        self.reuse_full_precision = reuse_full_precision
        self.gradient_checkpointing = gradient_checkpointing
        self.output_dir = user_path(output_dir)
        self.decoder = Decoder(pretrained, getattr(torch, dtype))
        require_fitting_widths(self.decoder.meta_block(), self.recipe)
        shapes = linear_shapes(self.decoder.meta_block())
        self.blocks = nn.ModuleList(
            QuantBlock(shapes, self.recipe, index) for index in range(self.decoder.num_blocks)
        )
        self.distillation = self._distillation()
        self.block_index = 0
        self.directory = ModelDirectory(self.output_dir / "model", self.recipe)
        self.run_description: dict[str, Any] = {}

    @property
    def num_turns(self) -> int:
        """Every block's, and, if the recipe distils, the whole model's."""
        return self.num_blocks + (self.distillation is not None)

    @property
    def is_calibrated(self) -> bool:
        """Whether every turn is over."""
        return self.block_index >= self.num_turns

    @property
    def is_distilling(self) -> bool:
        """Whether all blocks are finished and the whole model learns."""
        return self.num_blocks <= self.block_index < self.num_turns

    @property
    def current_block(self) -> QuantBlock:
        """The block that is being calibrated; after the last one, the last."""
        return _quant_block(self.blocks[min(self.block_index, self.num_blocks - 1)])

    @property
    def learner(self) -> Learner:
        """What the current turn trains."""
        if self.is_distilling:
            assert self.distillation is not None
            return self.distillation
        return self.current_block

    @property
    def learns(self) -> bool:
        """Whether the current turn trains anything."""
        return self.recipe.has_lwc or self.is_distilling

    @property
    def epochs_per_block(self) -> int:
        """Epochs the trainer spends on a block; without LWC one, to have a step to checkpoint."""
        return self.recipe.lwc.epochs if self.recipe.has_lwc else 1

    def first_epoch(self, turn: int) -> int:
        """Epoch with which a turn begins; ``first_epoch(num_turns)`` counts all epochs."""
        behind = self.recipe.distillation.epochs if turn > self.num_blocks else 0
        return min(turn, self.num_blocks) * self.epochs_per_block + behind

    def generator(self, index: int) -> torch.Generator:
        """Randomness of block ``index``, the same in every run with this seed, resumed or not."""
        return block_generator(self.seed, index)

    def training_step(self, batch: BlockBatch, batch_idx: int) -> Tensor:
        """One step of the current turn; a block without LWC has one that moves nothing."""
        if not self.learns:
            return self._idle_loss()
        return self.learner.training_step(batch, batch_idx)

    def on_train_batch_start(self, batch: BlockBatch, batch_idx: int) -> None:
        """Follow the current turn's schedule."""
        first = self.first_epoch(self.block_index)
        self.learner.follow_schedule(self.trainer, batch_idx, first)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let no gradient that is not finite reach the parameters."""
        self.learner.drop_unusable_step(optimizer)

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """One AdamW over what all turns learn; none where nothing does."""
        groups = merged_groups([_quant_block(each).parameter_groups() for each in self.blocks])
        if self.distillation is not None:
            groups += self.distillation.parameter_groups()
        return block_optimizer(groups) if groups else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the run is about, and of what turns learn for themselves the current one's."""
        checkpoint["duquant_run"] = self.run_description
        state = checkpoint.setdefault("state_dict", {})
        state["block_index"] = torch.tensor(self.block_index, device="cpu")
        for name in self._learned_elsewhere(self.block_index):
            del state[name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run; what it does not hold stays as it is.

        Raises:
            ValueError: naming every difference.
        """
        differences = compare_runs(checkpoint.get("duquant_run", {}), self.run_description)
        if differences:
            raise ValueError(f"the checkpoint is of another run: {'; '.join(differences)}")
        stored, own = checkpoint["state_dict"], self.state_dict()
        self.block_index = int(stored.pop("block_index"))
        for name in self._learned_elsewhere(self.block_index):
            stored[name] = own[name]

    def _distillation(self) -> Distillation | None:
        if not self.recipe.distillation.epochs:
            return None
        blocks = [self.decoder.meta_block(index) for index in range(self.decoder.num_blocks)]
        return Distillation(
            [float_shapes(block, self.recipe) for block in blocks],
            self.recipe,
            gradient_checkpointing=self.gradient_checkpointing,
        )

    def _idle_loss(self) -> Tensor:
        """Zero, through a parameter if there is one: processes that train together expect that."""
        parameter = next(self.parameters(), None)
        if parameter is None:
            return torch.zeros((), dtype=torch.float32, device=self.device, requires_grad=True)
        return parameter.sum() * 0

    def _learned_elsewhere(self, current: int) -> list[str]:
        """Names of the many numbers that turns other than the current one learn.

        Those of finished turns are in the blocks' files, and the others have not begun.
        """
        names = [
            f"blocks.{number}.activation_side.transforms.{name}"
            for number, block in enumerate(self.blocks)
            if number != current
            for name, _ in _quant_block(block).activation_side.transforms.named_parameters()
        ]
        if self.distillation is not None and current != self.num_blocks:
            values = self.distillation.values.named_parameters()
            names += [f"distillation.values.{name}" for name, _ in values]
        return names


def _quant_block(block: nn.Module) -> QuantBlock:
    assert isinstance(block, QuantBlock)
    return block
