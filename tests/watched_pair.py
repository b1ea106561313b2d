"""One of two processes of a job that never ends: a script of its own, for tests that end it.

    python tests/watched_pair.py RANK collective|deaf

A process 0 that is ``deaf`` waits where no broken connection is noticed, as NCCL may.
"""

import os
import sys
import time
import warnings
from datetime import timedelta
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import distributed, nn

from callbacks import joint_failure
from callbacks.data_parallel import BlockParallel
from callbacks.endings import one_line_endings


class Waits(LightningModule):
    """Its first step takes for ever: process 0 waits for process 1, which never comes."""

    def __init__(self, is_deaf: bool) -> None:
        super().__init__()
        self.linear, self.is_deaf = nn.Linear(1, 1), is_deaf

    def training_step(self, batch: Any, index: int) -> None:
        """Say so, then wait."""
        print("waits", flush=True)
        if self.global_rank == 0 and not self.is_deaf:
            distributed.barrier()
        time.sleep(600)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Never used."""
        return torch.optim.SGD(self.parameters(), 0.1)


def main() -> None:
    """Take part in the job."""
    rank, how = sys.argv[1:]
    os.environ["NODE_RANK"] = rank
    warnings.simplefilter("ignore")
    joint_failure.PATIENCE, joint_failure.SILENCE = timedelta(seconds=0.5), 6
    trainer = Trainer(
        accelerator="cpu", strategy=BlockParallel(), num_nodes=2, devices=1, max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with one_line_endings():
        trainer.fit(Waits(how == "deaf"), torch.zeros(4, 1))


if __name__ == "__main__":
    main()
