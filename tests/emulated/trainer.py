"""Lightning's side of the emulated device: ``--trainer.accelerator emulated``."""

from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

from tests.emulated.device import NAME


class EmulatedAccelerator(Accelerator):
    """One device, which is always there."""

    def setup_device(self, device: torch.device) -> None:
        """It needs none."""

    def teardown(self) -> None:
        """It needs none."""

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        """It keeps none."""
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return [0] if isinstance(devices, int) else devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


def install() -> None:
    """Let a Trainer find it by name; Lightning takes the CPU for accelerators it does not know."""
    AcceleratorRegistry.register(NAME, EmulatedAccelerator, description="for tests")
    usual = _AcceleratorConnector._choose_strategy

    def choose(self: Any) -> Any:
        if self._accelerator_flag == NAME:
            return SingleDeviceStrategy(device=torch.device(NAME, 0))
        return usual(self)

    _AcceleratorConnector._choose_strategy = choose  # type: ignore[method-assign]
