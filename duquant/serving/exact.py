"""The exact mode: vLLM computes every number as transformers does, on processors in float32.

``--additional-config '{"duquant_exact": true}'`` asks for it. Attention is transformers' own
(:mod:`duquant.serving.sdpa_attention`); norms, RoPE and SiLU are vLLM's definitions in PyTorch's
operations, which are those of transformers, in place of its kernels; and nothing is compiled. In
half precision vLLM's norms add the residual before it is rounded and transformers' behind it, so
there is no exact mode.
"""

from typing import Any

EXACT = "duquant_exact"
PLAIN = ["none"]
"""``custom_ops`` of vLLM's ``compilation_config``: none of its kernels."""


def is_exact(config: Any) -> bool:
    """Whether a ``VllmConfig`` asks for it."""
    options = config.additional_config
    return isinstance(options, dict) and options.get(EXACT, False) is True


def require_exact(config: Any) -> None:
    """Refuse the exact mode where there is none.

    Args:
        config: a ``VllmConfig``.

    Raises:
        ValueError: if the option is no bool, or asked for with a device or dtype that lacks it.
    """
    options = config.additional_config
    asked = options.get(EXACT, False) if isinstance(options, dict) else False
    if not isinstance(asked, bool):
        raise ValueError(f"{EXACT} is {asked!r}; it must be true or false")
    if not asked:
        return
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        raise ValueError(
            f"{EXACT} is for processors alone, and vLLM runs on {current_platform.device_name}: "
            f"leave it out"
        )
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    if dtype != "float32":
        raise ValueError(
            f"{EXACT} needs --dtype float32, not {dtype}: in half precision vLLM's norms round "
            f"elsewhere than those of transformers"
        )


def make_exact(config: Any) -> None:
    """Switch vLLM's kernels and its compilation off; for options that nothing has read yet.

    Args:
        config: a ``VllmConfig``, changed in place.

    Raises:
        ValueError: if kernels were asked for.
    """
    asked = config.compilation_config.custom_ops
    if asked and asked != PLAIN:
        raise ValueError(
            f"custom_ops of --compilation-config are {asked}; {EXACT} computes without them: "
            f"leave them out"
        )
    from vllm.logger import init_logger

    config.compilation_config.custom_ops = list(PLAIN)
    config.model_config.enforce_eager = True
    init_logger(f"vllm.{__name__}").info_once(
        "duquant: exact, so nothing is compiled and attention, norms, RoPE and SiLU are PyTorch's; "
        "--max-num-seqs 1 keeps sequences from changing each other's last bits"
    )
