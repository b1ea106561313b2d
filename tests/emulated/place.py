"""Where on the emulated device the numbers of tensors lie."""

from typing import NamedTuple

import torch


class Place(NamedTuple):
    """What a tensor's storage says of itself; views of one tensor have the same.

    Attributes:
        held: the numbers, in memory of the CPU.
    """

    held: torch.UntypedStorage

    def data_ptr(self) -> int:
        """An address that tells storages apart, as a GPU's does; reading there is an error."""
        return self.held.data_ptr() | 1 << 62

    def nbytes(self) -> int:
        return self.held.nbytes()
