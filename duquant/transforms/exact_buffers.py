"""Buffers that keep their dtype when a model is cast.

``model.half()`` casts every float tensor of a model. A rotation in half precision is no longer
orthogonal and a scale is no longer the one its integers were made for, so those stay as they are
and only follow the model to its device.
"""

from collections.abc import Callable

from torch import Tensor, nn


class ExactBuffers(nn.Module):
    """A module whose buffers named in ``EXACT`` are moved but never cast."""

    EXACT: tuple[str, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        exact = {name: self._buffers.get(name) for name in self.EXACT}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            after = self._buffers.get(name)
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self
