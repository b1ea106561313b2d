"""What may be asked of a served model, and what is refused by name.

The one option of its own is how to compute: ``--additional-config '{"duquant_backend":
"reference"}'``, see :class:`duquant.nn.execution.Execution`.
"""

from typing import Any

from duquant.nn.execution import Execution

BACKEND, MEMORY = "duquant_backend", "duquant_weights_in_memory"


def execution_of(config: Any) -> Execution:
    """How to compute, as a ``VllmConfig`` asks.

    Raises:
        ValueError: for an unknown choice.
    """
    options = config.additional_config
    options = options if isinstance(options, dict) else {}
    return Execution(options.get(BACKEND, "auto"), options.get(MEMORY, "fast"))


def require_options(config: Any) -> None:
    """Refuse what a quantized model cannot do in vLLM.

    Args:
        config: a ``VllmConfig``.

    Raises:
        ValueError: naming the option.
    """
    parallel, cache = config.parallel_config, config.cache_config
    if config.lora_config is not None:
        raise ValueError("duquant: LoRA adapters cannot be served; leave --enable-lora out")
    if cache.cache_dtype not in ("auto", str(config.model_config.dtype).removeprefix("torch.")):
        raise ValueError(
            f"duquant: --kv-cache-dtype {cache.cache_dtype} would round K and V a second time; "
            f"leave it at auto"
        )
    if parallel.tensor_parallel_size > 1:
        raise ValueError(
            f"duquant: --tensor-parallel-size is {parallel.tensor_parallel_size}; a quantized "
            f"model is served by one device (1)"
        )
