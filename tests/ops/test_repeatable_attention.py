"""FlashAttention in one order: the same numbers, and PyTorch's switch for its backward pass alone.

The machine needs no GPU: processors have a FlashAttention of their own, through which the way runs.
That CUDA's repeats its bits is asked by ``tests.benchmarks.gpu_check``.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from duquant.ops.repeatable_attention import can_repeat_flash, repeatable_flash, repeats_flash_on

Settings = tuple[int, bool]


def settings() -> Settings:
    fills = torch.utils.deterministic.fill_uninitialized_memory
    return torch.get_deterministic_debug_mode(), fills


class Recorder(TorchDispatchMode):
    """Keeps how each operation finds PyTorch's switch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Settings]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((func.__name__, settings()))
        return func(*args, **(kwargs or {}))

    def under(self, word: str) -> set[Settings]:
        return {found for name, found in self.seen if word in name}


@pytest.fixture(params=["default", "warn", "error"])
def before(request: pytest.FixtureRequest) -> Iterator[Settings]:
    torch.set_deterministic_debug_mode(request.param)
    yield settings()
    torch.set_deterministic_debug_mode("default")


def operands(heads: int = 4, tokens: int = 7, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, count, tokens, 16) for count in (4, heads, heads)]
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [x.requires_grad_() for x in made]


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    few = key.shape[1] != query.shape[1]
    attended = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.3, enable_gqa=few
    )
    return attended.transpose(1, 2)


def gradients(compute: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    output = compute(*given)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype)
    return [output, *torch.autograd.grad(output, given, weights)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("tokens", [1, 2, 65])
def test_output_and_gradients_are_attentions(heads: int, tokens: int, dtype: torch.dtype) -> None:
    given = operands(heads, tokens, dtype)
    found = gradients(lambda *qkv: repeatable_flash(causal, *qkv), given)
    for mine, plain in zip(found, gradients(causal, given), strict=True):
        assert torch.equal(mine, plain)


def test_some_operands_need_no_gradient() -> None:
    query, key, value = operands()
    output = repeatable_flash(causal, query, key.detach(), value.detach())
    (found,) = torch.autograd.grad(output.sum(), [query])
    assert torch.equal(found, torch.autograd.grad(causal(query, key, value).sum(), [query])[0])


def test_gradients_of_gradients_are_refused() -> None:
    """Rather than taken for constants."""
    given = operands()
    output = repeatable_flash(causal, *given)
    first = torch.autograd.grad(output.square().sum(), given, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first[0].square().sum().backward()


def test_the_switch_is_on_for_the_backward_pass_alone(before: Settings) -> None:
    given = operands()
    with Recorder() as recorder:
        output = repeatable_flash(causal, *given) * 2
        forwards, recorder.seen = recorder.under("attention"), []
        output.sum().backward()
    assert forwards == {before}
    assert recorder.under("attention_for_cpu_backward") == {(2, False)}
    assert recorder.under("mul") == recorder.under("expand") == {before}
    assert settings() == before


def test_a_backward_pass_that_fails_leaves_the_switch_as_it_was(before: Settings) -> None:
    calls = []

    def fails_later(*given: Tensor) -> Tensor:
        calls.append(given)
        output = causal(*given)
        if len(calls) > 1:
            output.register_hook(lambda gradient: gradient[:, :1].expand(3, 3))
        return output

    output = repeatable_flash(fails_later, *operands())
    with pytest.raises(RuntimeError):
        output.sum().backward()
    assert len(calls) == 2
    assert settings() == before


def test_a_checkpointed_block_has_the_same_gradients() -> None:
    given = operands()

    def block(*qkv: Tensor) -> Tensor:
        return repeatable_flash(causal, *qkv).sin()

    def kept(*qkv: Tensor) -> Tensor:
        output: Tensor = checkpoint(block, *qkv, use_reentrant=False)
        return output

    for mine, plain in zip(gradients(kept, given), gradients(block, given), strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.parametrize(
    "case", ["fits", "masked", "dropout", "AMD", "compiled", "processor", "refused"]
)
def test_only_what_flash_attention_computes_on_cuda(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def can_use(params: Any) -> bool:
        asked.append(params)
        return case != "refused"

    monkeypatch.setattr(torch.backends.cuda, "can_use_flash_attention", can_use)
    monkeypatch.setattr(torch.version, "hip", "7.0" if case == "AMD" else None)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: case == "compiled")
    with FakeTensorMode():
        device = "cpu" if case == "processor" else "cuda"
        query, key = (torch.empty(1, heads, 5, 16, device=device) for heads in (4, 2))
        mask = torch.empty(1, 1, 5, 5, device=device) if case == "masked" else None
        found = can_repeat_flash(query, key, key, mask, 0.1 if case == "dropout" else 0.0)
    assert found == (case == "fits")
    if case in ("fits", "refused"):
        assert asked[0].enable_gqa
        assert asked[0].is_causal


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, True),
        ({"device": "cpu"}, False),
        ({"dtype": torch.float32}, False),
        ({"head_dim": 193}, False),
        ({"capability": (7, 5)}, False),
        ({"hip": "7.0"}, False),
        ({"built": False}, False),
        ({"enabled": False}, False),
    ],
)
def test_what_is_known_of_a_gpu_beforehand(
    changed: dict[str, Any], found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_so: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16, "head_dim": 128}
    is_so |= {"capability": (8, 0), "hip": None, "built": True, "enabled": True, **changed}
    cuda, device = torch.backends.cuda, torch.device(is_so["device"])
    monkeypatch.setattr(torch.version, "hip", is_so["hip"])
    monkeypatch.setattr(cuda, "is_flash_attention_available", lambda: is_so["built"])
    monkeypatch.setattr(cuda, "flash_sdp_enabled", lambda: is_so["enabled"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: is_so["capability"])
    assert repeats_flash_on(device, is_so["dtype"], is_so["head_dim"]) == found
