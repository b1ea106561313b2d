"""Telling the sites and linears of finished blocks how to compute."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import nn

from duquant.model.structure import SITES, Site
from duquant.nn.execution import PROCESSOR, Execution
from duquant.nn.joined_linears import JoinedLinears, are_multiplied_packed
from duquant.nn.measured_choice import choose
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.planned_memory import keep_what_fits
from duquant.nn.site import SiteNorm, SiteTransform
from duquant.ops.integer_weight import ROW_COUNTS


def configure_execution(blocks: Iterable[nn.Module], execution: Execution) -> None:
    """Set backend and memory of finished blocks.

    A site emits integers where all linears that read it multiply them. What is measured to be
    faster on an accelerator is taken where it fits beside the whole model.

    Args:
        blocks: decoder blocks with finished linears, on their devices.
        execution: the choice.

    Raises:
        ValueError: if the integer backend was asked for and cannot run; then nothing has changed.
    """
    sites: list[tuple[SiteTransform, list[nn.Module]]] = []
    for block in blocks:
        for site in SITES:
            linears = [_without_adapter(block.get_submodule(name)) for name in site.linears]
            sites.append((transform_of(block, site), linears))
    all_linears = [linear for _, linears in sites for linear in linears]
    _require_possible(all_linears, execution)
    packed = _packed(all_linears)
    _reset(packed, execution)
    for linear in packed:
        linear.choice = choose(linear, execution, linear.grid_device)
    keep_what_fits(packed)
    for transform, linears in sites:
        _connect(transform, linears)


def configure_site(
    transform: SiteTransform, linears: Iterable[nn.Module], execution: Execution
) -> None:
    """Set backend and memory of one site and of all linears that read it.

    On an accelerator the fixed rule decides: only who sees the whole model knows whether there is
    memory for more.

    Raises:
        ValueError: as :func:`configure_execution`.
    """
    linears = list(linears)
    _require_possible(linears, execution)
    packed = _packed(linears)
    _reset(packed, execution)
    for linear in packed:
        if linear.grid_device.type == PROCESSOR:
            linear.choice = choose(linear, execution, linear.grid_device)
    _connect(transform, linears)


def _packed(linears: Iterable[nn.Module]) -> list[PackedLinear]:
    return [linear for linear in linears if isinstance(linear, PackedLinear)]


def _require_possible(linears: Iterable[nn.Module], execution: Execution) -> None:
    for linear in linears:
        if isinstance(linear, PackedLinear):
            reader = replace(linear.reader(), execution=execution, choice=None)
            reader.is_integer_on(linear.grid_device)
        elif execution.backend == "integer":
            raise ValueError("the integer backend cannot run here: the weights are not quantized")


def _reset(linears: Iterable[PackedLinear], execution: Execution) -> None:
    for linear in linears:
        linear.restore()
        linear.execution, linear.choice = execution, None


def _connect(transform: SiteTransform, linears: Sequence[nn.Module]) -> None:
    """Let a site emit what the linears that read it take."""
    packed = _packed(linears)
    are_all_packed = len(packed) == len(linears) > 0
    transform.emits_integers = are_all_packed and all(linear.is_integer for linear in packed)
    transform.reader = packed[0].reader() if are_all_packed else None
    are_joined = are_all_packed and len(packed) > 1 and are_multiplied_packed(packed)
    shared = JoinedLinears(packed) if are_joined else None
    for linear in packed:
        linear.shared = shared


def describe_execution(model: nn.Module) -> str:
    """How a model computes, in words: ``integer``, ``reference``, both, or its dtype alone."""
    linears = [module for module in model.modules() if isinstance(module, PackedLinear)]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if not linears:
        return dtype
    integer, count = sum(linear.is_integer for linear in linears), len(linears)
    mixed = f"integer in {integer} of {count} linears, reference in the others"
    return f"{ {0: 'reference', count: 'integer'}.get(integer, mixed) }, {dtype}"


def describe_kernels(modules: Iterable[nn.Module]) -> str:
    """What runs the linears in these modules, in words: by kernel and number of tokens."""
    found: dict[str, dict[int, None]] = {}
    for linear in (each for module in modules for each in module.modules()):
        if isinstance(linear, PackedLinear):
            found.setdefault(_described(linear), {})[linear.in_features] = None
    if len(found) < 2:
        return next(iter(found), "no quantized linears")
    parts = [f"{how} ({', '.join(map(str, inputs))} inputs)" for how, inputs in found.items()]
    return "; ".join(parts)


def _described(linear: PackedLinear) -> str:
    if not linear.is_integer:
        return f"reference in {str(linear.output_like.dtype).removeprefix('torch.')}"
    kernels = linear.planned_kernels(linear.grid_device)
    if len(set(kernels)) == 1:
        return f"integer by {kernels[0]}"
    each = ", ".join(
        f"{kernel} at {rows}" for rows, kernel in zip(ROW_COUNTS, kernels, strict=True)
    )
    return f"integer by {each} tokens"


def _without_adapter(linear: nn.Module) -> nn.Module:
    """The linear that PEFT has wrapped, if it has."""
    base: nn.Module = getattr(linear, "base_layer", linear)
    return base


def transform_of(block: nn.Module, site: Site) -> SiteTransform:
    """What stands at a site of a quantized block."""
    norm = block.get_submodule(site.producer)
    reader = _without_adapter(block.get_submodule(site.linears[0]))
    transform = norm.site if isinstance(norm, SiteNorm) else reader.site
    assert isinstance(transform, SiteTransform)
    return transform
