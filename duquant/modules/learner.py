"""What a turn of a calibration trains: a block's parameters, or those of the whole model."""

from abc import abstractmethod
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from duquant.model.batch import BlockBatch
from duquant.modules.block_optimizer import block_optimizer, is_fused
from duquant.processes import ALONE


class Learner(LightningModule):
    """Parameters that are trained on batches of one turn; steps that went wrong change nothing.

    ``step_loss`` is the last step's loss, the mean over all processes.
    """

    skipped_steps: Tensor
    has_begun: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("skipped_steps", torch.zeros((), dtype=torch.int64, device="cpu"))
        self.register_buffer("has_begun", torch.zeros((), dtype=torch.bool, device="cpu"))
        self.processes = ALONE
        self.step_loss = torch.zeros((), dtype=torch.float32, device="cpu")

    @abstractmethod
    def loss(self, batch: BlockBatch) -> Tensor:
        """This process's loss of one batch."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is learned, as an optimizer's groups: ``params`` and ``lr``."""

    @abstractmethod
    def follow_schedule(self, trainer: Trainer, batch_index: int, first_epoch: int = 0) -> None:
        """Give the trainer's optimizers the rates of the step that is about to begin.

        Args:
            trainer: says which epoch it is.
            batch_index: the step's place in its epoch.
            first_epoch: of the turn.
        """

    @abstractmethod
    def release(self) -> None:
        """Let go of what was borrowed to be trained; the parameters stay."""

    def training_step(self, batch: BlockBatch, batch_idx: int) -> Tensor:
        """This process's loss of one step; ``step_loss`` is the mean over all processes."""
        loss = self.loss(batch)
        self.step_loss = self.processes.mean(loss.detach())
        return loss

    @torch.no_grad()
    def drop_unusable_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer's next step change nothing if its loss or a gradient is not finite.

        All processes drop the same steps, because loss and gradients are means over them: what is
        not finite on one is finite on none. On a GPU the host does not wait for the answer: a fused
        optimizer reads it there (``found_inf``, as with PyTorch's gradient scaler), and changes
        neither parameters nor moments. Others are left without gradients.
        """
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if not gradients:
            return
        found = torch.zeros((), dtype=torch.float32, device=gradients[0].device)
        torch._amp_foreach_non_finite_check_and_unscale_(
            [*gradients, self.step_loss.clone()], found, torch.ones_like(found)
        )
        self.skipped_steps += found.to(self.skipped_steps.dtype)
        if is_fused(optimizer):
            optimizer.found_inf = found  # type: ignore[attr-defined]
        elif found:
            self.zero_grad(set_to_none=True)

    def on_train_batch_start(self, batch: BlockBatch, batch_idx: int) -> None:
        """Follow the schedule under a Trainer of its own."""
        self.follow_schedule(self.trainer, batch_idx)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Guard the parameters under a Trainer of its own."""
        self.drop_unusable_step(optimizer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW without weight decay."""
        return block_optimizer(self.parameter_groups())
