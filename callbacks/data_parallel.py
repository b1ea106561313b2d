"""Many processes, on one machine or several: Lightning's DDP, as a calibration needs it.

Every process runs the whole algorithm on its share of the samples (:mod:`duquant.processes` says
what they exchange). Process 0 alone writes the model, the checkpoint, records and pictures; every
process writes its own streams, into the run directory that all of them must see.
"""

import signal
import threading
from datetime import timedelta

from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from callbacks.joint_failure import claim_the_word, end_with_the_others, watch
from duquant.data.datamodule import CalibrationDataModule
from duquant.modules.language_model import LanguageModel
from duquant.processes import Processes

STRATEGIES = ("ddp", "ddp_find_unused_parameters_true")
"""Names of :class:`BlockParallel` on the command line."""
LONGEST_WAIT = timedelta(minutes=30)
"""For the other processes, in one exchange: process 0 alone writes blocks and pictures."""


class BlockParallel(DDPStrategy):
    """DDP over a model of which one block trains at a time."""

    def __init__(self) -> None:
        super().__init__(find_unused_parameters=True, timeout=LONGEST_WAIT)
        self._is_watching = False
        self._is_over: threading.Event | None = None

    def setup_environment(self) -> None:
        """Watch the processes that were started here, join the group, then watch all of it."""
        launcher = self.launcher
        if isinstance(launcher, _SubprocessScriptLauncher) and not self._is_watching:
            self._is_watching = True
            watch(launcher.procs)
        super().setup_environment()
        self._is_over = end_with_the_others(self.global_rank, self.world_size)

    def teardown(self) -> None:
        """Let the others end when they like: this process needs them no more."""
        if self._is_over is not None:
            self._is_over.set()
        super().teardown()

    def configure_ddp(self) -> None:
        """Wrap the model, unless nothing trains (without LWC)."""
        assert self.model is not None
        if any(parameter.requires_grad for parameter in self.model.parameters()):
            super().configure_ddp()

    def on_exception(self, exception: BaseException) -> None:
        """Take the word, and the processes that were started here along."""
        super().on_exception(exception)
        claim_the_word()
        if self.launcher is not None:
            self.launcher.kill(signal.SIGKILL)


def processes_of(trainer: Trainer) -> Processes:
    """This process among those of a trainer."""
    device, here = trainer.strategy.root_device, trainer.num_devices
    return Processes(trainer.global_rank, trainer.world_size, device, here)


def require_even_shares(
    trainer: Trainer, model: LanguageModel, data: CalibrationDataModule
) -> None:
    """Check that every process gets as many samples, and as many of each batch.

    Raises:
        ValueError: naming the option, its value and the number of processes.
    """
    count = trainer.world_size
    shared = {"data.num_samples": data.num_samples}
    if model.recipe.has_lwc:
        shared["model.lwc.batch_size"] = data.batch_size
    if model.distillation is not None:
        shared["model.distillation.batch_size"] = model.recipe.distillation.batch_size
    for option, value in shared.items():
        if value % count:
            raise ValueError(
                f"{option} is {value}; it must be a multiple of {count}, the number of processes "
                f"(trainer.devices × trainer.num_nodes)"
            )
