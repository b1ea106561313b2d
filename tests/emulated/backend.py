"""Making the emulated device known to PyTorch."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer
from torch.utils import backend_registration

from duquant.ops import copy_stream
from tests.emulated import pinned, queues
from tests.emulated.counts import record
from tests.emulated.device import NAME, EmulatedTensor, attention, dispatch

aten = torch.ops.aten


class Memory:
    """What the device says of its memory.

    Attributes:
        free: bytes.
    """

    free = 1 << 36


class _Module:
    """What ``torch.emulated`` is."""

    @staticmethod
    def mem_get_info(device: Any = None) -> tuple[int, int]:
        return Memory.free, 1 << 37

    @staticmethod
    def memory_reserved(device: Any = None) -> int:
        return 0

    @staticmethod
    def memory_allocated(device: Any = None) -> int:
        return 0

    @staticmethod
    def synchronize(device: Any = None) -> None:
        """Nothing is left to wait for; who waits says for which device."""
        if device is None:
            raise RuntimeError("synchronize() waits for the current device; name one")

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def get_device_name(device: Any) -> str:
        return "an emulated device"

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """It draws nothing by itself."""

    @staticmethod
    def get_rng_state(device: Any = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8, device="cpu")

    @staticmethod
    def set_rng_state(state: Tensor, device: Any = None) -> None:
        """There is none."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def device(index: Any) -> Any:
        return nullcontext()

    Stream, Event, stream = queues.Stream, queues.Event, staticmethod(queues.stream)

    @staticmethod
    def current_stream(device: Any = None) -> queues.Stream:
        return queues.COMPUTING


def install() -> torch.device:
    """Make the device known to this process, for good; before its first backward pass.

    PyTorch starts the threads of devices' backward passes once, and a process that has them cannot
    be forked. So this belongs into a process of its own.
    """
    setup = backend_registration._setup_privateuseone_for_python_backend
    setup(NAME, backend_module=_Module())
    optimizer._foreach_supported_types.append(EmulatedTensor)  # as CUDA's: many tensors, one kernel
    library = torch.library.Library("aten", "IMPL")

    def empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
        options = {} if memory_format is None else {"memory_format": memory_format}
        return EmulatedTensor(torch.empty(size, dtype=dtype, device="cpu", **options))

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
        return EmulatedTensor(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))

    def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        return dispatch(aten.copy_.default, (target, source, non_blocking), {})  # type: ignore[no-any-return]

    def arange(*range_: Any, dtype: Any = None, **_: Any) -> Tensor:
        record("aten::arange", is_kernel=True, waits=False, uploads=False)
        return EmulatedTensor(torch.arange(*range_, dtype=dtype, device="cpu"))

    for name in ("arange", "arange.start", "arange.start_step"):  # PyTorch's changes its size
        library.impl(name, arange, "PrivateUse1")
    library.impl("scaled_dot_product_attention", attention, "AutogradPrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")  # of torch.tensor(…, device=…)
    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("empty_strided", empty_strided, "PrivateUse1")
    _kept.append(library)
    copy_stream.pinned_memory = pinned.pinned_memory
    return torch.device(NAME, 0)


_kept: list[Any] = []
