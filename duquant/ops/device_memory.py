"""How much memory of a device may still be taken."""

import torch


def free_device_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a GPU; ``None`` where the memory is the host's, or nobody says."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
