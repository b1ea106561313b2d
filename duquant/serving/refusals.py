"""What may be asked of a served model, and what is refused by name before anything is started.

The choices of its own say how to compute: ``--additional-config '{"duquant_backend":
"reference"}'``, see :class:`duquant.nn.execution.Execution`, and ``duquant_exact``, see
:mod:`duquant.serving.exact`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from duquant.nn.execution import Execution
from duquant.serving.exact import EXACT, require_exact
from duquant.terminal import note

BACKEND, MEMORY = "duquant_backend", "duquant_weights_in_memory"
OPTIONS = (BACKEND, MEMORY, EXACT)
"""Keys of ``--additional-config`` that are ours."""
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Models of vLLM whose numbers were compared with those of transformers."""
MOVING_ROTATIONS = ("dynamic", "longrope")
"""Scaled RoPE whose frequencies follow the length of a sequence in transformers, not in vLLM."""


def execution_of(config: Any) -> Execution:
    """How to compute, as a ``VllmConfig`` asks.

    Raises:
        ValueError: for an unknown option or choice.
    """
    options = config.additional_config
    options = options if isinstance(options, dict) else {}
    for key in options:
        if str(key).startswith("duquant_") and key not in OPTIONS:
            raise ValueError(f"{key} is no option of duquant: there are {', '.join(OPTIONS)}")
    return Execution(options.get(BACKEND, "auto"), options.get(MEMORY, "fast"))


def require_options(config: Any) -> None:
    """Refuse what a quantized model cannot do in vLLM.

    Args:
        config: a ``VllmConfig``.

    Raises:
        ValueError: naming the option.
    """
    parallel, cache, model = config.parallel_config, config.cache_config, config.model_config
    if parallel.pipeline_parallel_size > 1:
        raise ValueError(
            f"--pipeline-parallel-size is {parallel.pipeline_parallel_size}; the blocks of a "
            f"duquant model are not spread over devices: 1"
        )
    require_shares(model.hf_config, parallel.tensor_parallel_size)
    if config.lora_config is not None:
        raise ValueError("LoRA adapters cannot be served on a duquant model: no --enable-lora")
    own_dtype = str(model.dtype).removeprefix("torch.")
    if cache.cache_dtype not in ("auto", own_dtype):
        raise ValueError(
            f"--kv-cache-dtype is {cache.cache_dtype}; it would round K and V, which are quantized "
            f"already, a second time: leave it at auto"
        )
    if config.load_config.load_format == "dummy":
        raise ValueError("--load-format is dummy; a duquant model cannot run without its tensors")
    if model.quantization_config is not None:
        raise ValueError("--quantization-config cannot be given: a duquant model has its own")
    execution_of(config)
    require_exact(config)


def require_shares(config: Any, count: int) -> None:
    """Refuse to share a model among devices where they would not hold equal parts.

    Args:
        config: a configuration of transformers.
        count: devices.

    Raises:
        ValueError: naming what cannot be shared.
    """
    heads = config.num_attention_heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    sizes = {
        "attention heads": heads,
        "hidden channels": config.hidden_size,
        "channels of the MLP": config.intermediate_size,
    }
    if key_value_heads >= count:
        sizes["heads of K and V"] = key_value_heads
    elif count % key_value_heads:  # else several devices hold the same head
        raise ValueError(
            f"--tensor-parallel-size is {count}, which is no multiple of the model's "
            f"{key_value_heads} heads of K and V"
        )
    for what, size in sizes.items():
        if size % count:
            raise ValueError(
                f"--tensor-parallel-size is {count}, which does not divide the model's "
                f"{size} {what}"
            )


def require_family(config: Any) -> None:
    """Refuse models of which vLLM may compute something else than transformers.

    Args:
        config: a configuration of transformers.

    Raises:
        ValueError: naming the family or its rotation.
    """
    (architecture, *_) = getattr(config, "architectures", None) or [type(config).__name__]
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"a duquant model of {architecture} is not served by vLLM: only "
            f"{', '.join(ARCHITECTURES)}"
        )
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation in MOVING_ROTATIONS:
        raise ValueError(f"rope_type {rotation} is not served: vLLM rotates otherwise")


COMMANDS = ("vllm", "api_server.py")
"""Programs that end with a message: ``vllm serve``, and its server called as a module."""


@contextmanager
def refusing_in_one_line() -> Iterator[None]:
    """Let vLLM's command end with an error's message alone and status 2; others get the error."""
    try:
        yield
    except ValueError as error:
        if Path(sys.argv[0]).name not in COMMANDS:
            raise
        note(f"duquant: {error}")
        raise SystemExit(2) from error
