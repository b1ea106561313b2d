"""Look at what enters some modules of a block while it runs: the way every statistic is taken."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def watching(
    modules: Mapping[str, nn.Module], look: Callable[[str, tuple[Any, ...]], None]
) -> Iterator[None]:
    """Show the inputs of modules, before these run, as long as the context lasts.

    Args:
        modules: by the names that ``look`` is told.
        look: gets a module's name and its positional inputs; what it raises stops the run.
    """

    def shown(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: look(name, inputs)

    handles = [module.register_forward_pre_hook(shown(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
