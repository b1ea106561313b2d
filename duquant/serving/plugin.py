"""What vLLM calls at its start, in each of its processes: one quantization method more.

``pyproject.toml`` names :func:`register` as an entry point of ``vllm.general_plugins``, so
``vllm serve DIRECTORY`` needs no flag and nobody imports duquant.
"""


def register() -> None:
    """Make ``quant_method: duquant`` known to vLLM; calling again is harmless."""
    from vllm.model_executor.layers.quantization import (
        QUANTIZATION_METHODS,
        register_quantization_config,
    )

    from duquant.export.quantization_config import QUANT_METHOD
    from duquant.serving.served_config import ServedConfig

    if QUANT_METHOD not in QUANTIZATION_METHODS:
        register_quantization_config(QUANT_METHOD)(ServedConfig)
