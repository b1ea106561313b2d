"""A second device without hardware: ``emulated:0``, whose memory no code of the CPU can read.

It is PyTorch's place for other people's devices (PrivateUse1) with a backend in Python. A tensor on
it is a shell with a shape, a dtype and a device; its numbers lie in a CPU tensor that only this
module reaches. Every operation passes through :func:`EmulatedTensor.__torch_dispatch__`, which
computes it on those numbers as the CPU does, and counts what would cost time on a GPU:

* **kernels**: operations that compute or copy, not those that only view;
* **waits**: moments at which the host must know a number of the device, and waits for everything
  that was asked of it: ``item()``, ``bool(…)``, copies to the host, shapes that depend on values;
* **uploads**: copies from the host's memory, but for those in :mod:`tests.emulated.queues`.

Operators of the product count as all that their definition asks for; inside of
:func:`triton_kernels` those with a kernel in Triton count as what that launches. Tensors of two
devices in one operation are refused as CUDA does; a dtype, where :mod:`tests.emulated.dtypes` says.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.emulated import queues
from tests.emulated.counts import record
from tests.emulated.dtypes import require
from tests.emulated.order import keeps_an_order
from tests.emulated.place import Place
from tests.ops.launches import LAUNCHES

NAME = "emulated"
aten = torch.ops.aten
ANSWERS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
"""Operations that return a number to the host."""
SHAPED_BY_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten.bincount.default,
}
"""Operations whose result has a shape that the host must wait for."""
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
COPIES = {aten.copy_.default, aten._to_copy.default}
SAME = "Expected all tensors to be on the same device, but found at least two devices"


_has_triton = False


@contextmanager
def triton_kernels() -> Iterator[None]:
    """Meanwhile count as a GPU does that has Triton."""
    global _has_triton
    _has_triton = True
    try:
        yield
    finally:
        _has_triton = False


class EmulatedTensor(Tensor):
    """A tensor of the device."""

    held: Tensor

    @staticmethod
    def __new__(cls: type["EmulatedTensor"], held: Tensor) -> "EmulatedTensor":
        """Put a CPU tensor's numbers on the device."""
        assert held.device.type == "cpu"
        assert type(held) is Tensor
        require(held.dtype)
        shell = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        shell.held = held
        return shell  # type: ignore[no-any-return]

    @property
    def data(self) -> Tensor:
        """The tensor without its gradient's history."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, EmulatedTensor)
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = self.detach().clone()
        return memo.setdefault(id(self), copy.requires_grad_(self.requires_grad))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Files hold its numbers as the CPU's."""
        return self.detach().cpu().__reduce_ex__(protocol)

    def data_ptr(self) -> int:
        """There is none that code of the CPU could read."""
        raise RuntimeError(f"the memory of {NAME}:0 is not readable by the CPU")

    def untyped_storage(self) -> Any:
        """For those who ask which tensors share their numbers; writing a file begins with it."""
        return Place(self.held.untyped_storage())

    def tolist(self) -> Any:
        """Numbers for the host."""
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"EmulatedTensor({self.held!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return dispatch(function, args, kwargs or {})


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """One kernel forward and one backward, as on a GPU, unless such kernels are turned off."""
    if enable_gqa and key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(repeats, dim=1) for each in (key, value))
    cuda = torch.backends.cuda
    if not (cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled()):
        math = aten._scaled_dot_product_attention_math
        return math(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)[0]  # type: ignore[no-any-return]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        floats = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = floats.masked_fill(~attn_mask, -torch.inf)
    return aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]  # type: ignore[no-any-return]


def dispatch(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if function is aten.scaled_dot_product_attention.default:
        return attention(*args, **kwargs)
    launches = LAUNCHES.get(function.name().partition(".")[0]) if _has_triton else None
    key = _made_of_others(function)
    if key is not None and launches is None:
        return function._op_dk(key, *args, **kwargs)
    if function is aten.gather.default and args[2].dtype != torch.int64:
        raise RuntimeError("gather(): Expected dtype int64 for index")  # as older PyTorch does
    if function is aten._has_compatible_shallow_copy_type.default:
        return isinstance(args[0], EmulatedTensor) == isinstance(args[1], EmulatedTensor)
    leaves: list[Tensor] = []
    plain_args = [_numbers(each, leaves) for each in args]
    plain_kwargs = {name: _numbers(each, leaves) for name, each in kwargs.items()}
    _require_one_device(function, args, leaves)
    asked = queues.asked(function, plain_args, plain_kwargs, args)
    if asked is not None:
        return args[0] if function is aten.copy_.default else EmulatedTensor(asked)
    target = plain_kwargs.get("device")
    stays = target is None or target.type == NAME
    if target is not None:
        plain_kwargs["device"] = torch.device("cpu")
    if launches is None:
        _count(function, args, stays)
    else:
        for _ in range(launches([getattr(each, "shape", ()) for each in args])):
            record(function.name(), is_kernel=True, waits=False, uploads=False)
    found = function(*plain_args, **plain_kwargs)
    if function is aten.copy_.default and not isinstance(args[0], EmulatedTensor):
        return args[0]
    if function in ANSWERS or not stays:
        return found
    given = {id(leaf.held): leaf for leaf in leaves if isinstance(leaf, EmulatedTensor)}
    return _shells(found, given)


def _numbers(value: Any, leaves: list[Tensor]) -> Any:
    """An argument as the CPU's operation gets it; its tensors are added to ``leaves``."""
    if isinstance(value, Tensor):
        leaves.append(value)
        return value.held if isinstance(value, EmulatedTensor) else value
    if isinstance(value, (list, tuple)):
        return [_numbers(each, leaves) for each in value]
    if isinstance(value, torch.Generator):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    return value


def _shells(found: Any, given: dict[int, EmulatedTensor]) -> Any:
    """Results on the device; what an operation changed in place is the tensor that was given."""
    if isinstance(found, Tensor):
        return given.get(id(found)) if id(found) in given else EmulatedTensor(found)
    if isinstance(found, (list, tuple)):
        return type(found)(_shells(each, given) for each in found)
    return found


@functools.cache
def _made_of_others(function: Any) -> Any:
    """Where an operation is written in terms of others, the key under which that is."""
    name, has_kernel = function.name(), torch._C._dispatch_has_kernel_for_dispatch_key
    if has_kernel(name, "CompositeImplicitAutograd"):
        return torch._C.DispatchKey.CompositeImplicitAutograd
    if name.startswith("duquant::") and has_kernel(name, "CompositeExplicitAutograd"):
        return torch._C.DispatchKey.CompositeExplicitAutograd  # what the product defines
    return None


def _require_one_device(function: Any, args: tuple[Any, ...], leaves: list[Tensor]) -> None:
    if function in COPIES:
        return
    strangers = [each for each in leaves if not isinstance(each, EmulatedTensor) and each.dim()]
    if function in INDEXING and isinstance(args[0], EmulatedTensor):
        of_index = {id(each) for each in args[1]}
        strangers = [each for each in strangers if id(each) not in of_index]
    if strangers:
        raise RuntimeError(f"{SAME}, {NAME}:0 and {strangers[0].device}! ({function})")


def _count(function: Any, args: tuple[Any, ...], stays: bool) -> None:
    waits, uploads = not stays or function in ANSWERS or function in SHAPED_BY_VALUES, False
    if function is aten.copy_.default:
        here = [isinstance(each, EmulatedTensor) for each in args[:2]]
        waits, uploads = here == [False, True], here == [True, False]
    if function in INDEXING:
        indices = [each for each in args[1] if each is not None]
        waits = any(each.dtype in (torch.bool, torch.uint8) for each in indices)
        uploads = any(not isinstance(each, EmulatedTensor) for each in indices)
    is_view = function.is_view or function in (aten.detach.default, aten.alias.default)
    record(
        function.name(), is_kernel=not is_view, waits=waits, uploads=uploads,
        is_ordered=keeps_an_order(function, args),
    )  # fmt: skip
