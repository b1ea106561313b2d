"""What vLLM calls at its start, in each of its processes: one quantization method more.

``pyproject.toml`` names :func:`register` as an entry point of ``vllm.general_plugins``, so
``vllm serve DIRECTORY`` needs no flag and nobody imports duquant.
"""

from typing import Any

from duquant.export.quantization_config import QUANT_METHOD
from duquant.serving.exact import is_exact, make_exact
from duquant.serving.refusals import ARCHITECTURES, refusing_in_one_line, require_options


def register() -> None:
    """Make ``quant_method: duquant`` known to vLLM; calling again is harmless."""
    from vllm.model_executor.layers.quantization import (
        QUANTIZATION_METHODS,
        register_quantization_config,
    )
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    from duquant.serving.served_config import ServedConfig

    class RequireOptions(VerifyAndUpdateConfig):
        """vLLM calls it with all options, in the process that was asked to serve."""

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            """Refuse options that a quantized model cannot follow; set those of the exact mode."""
            if vllm_config.model_config.quantization == QUANT_METHOD:
                with refusing_in_one_line():
                    require_options(vllm_config)
                    if is_exact(vllm_config):
                        make_exact(vllm_config)

    if QUANT_METHOD not in QUANTIZATION_METHODS:
        register_quantization_config(QUANT_METHOD)(ServedConfig)
        for architecture in ARCHITECTURES:  # without an entry of their own
            MODELS_CONFIG_MAP.setdefault(architecture, RequireOptions)
