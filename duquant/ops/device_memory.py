"""How much memory of a device may still be taken."""

import torch


def free_device_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a GPU; ``None`` where the memory is the host's, or nobody says."""
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return None
    free, _ = module.mem_get_info(device)
    return int(free) + int(module.memory_reserved(device)) - int(module.memory_allocated(device))
