"""The quantization method as vLLM sees it: which of its layers compute what, and what is refused.

vLLM builds its own model of the family and asks a ``QuantizationConfig`` for a method for each
linear. The modules that do the work come from a decoder block as transformers builds it, on the
meta device, prepared by :class:`duquant.export.hugging_face.DuquantQuantizer`; so everything that
is checked when transformers loads a directory is checked here.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.platforms import current_platform

from duquant.export.config_record import require_recorded
from duquant.export.quantization_config import QUANT_METHOD, DuquantConfig
from duquant.model.checkpoint import find_model_directory
from duquant.serving.exact import is_exact
from duquant.serving.linear_method import PackedLinearMethod
from duquant.serving.meta_blocks import fused_linear, meta_blocks
from duquant.serving.quantized_rotary import QuantizedRotary
from duquant.serving.refusals import (
    execution_of,
    refusing_in_one_line,
    require_family,
    require_options,
)
from duquant.serving.sdpa_attention import attend_by_sdpa
from duquant.serving.stored_names import CHILD, renaming_rules

logger = init_logger(f"vllm.{__name__}")
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")


class ServedConfig(QuantizationConfig):
    """The ``quantization_config`` of a model directory that vLLM serves.

    Args:
        quantization: what ``config.json`` says.
    """

    def __init__(self, quantization: DuquantConfig) -> None:
        super().__init__()
        self.quantization = quantization
        self.directory: Path | None = None
        self._blocks: list[nn.Module] | None = None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ServedConfig":
        """Read it.

        Raises:
            ValueError: as :class:`duquant.export.quantization_config.DuquantConfig`.
        """
        with refusing_in_one_line():
            return cls(DuquantConfig(**config))

    def get_name(self) -> str:
        """What ``config.json`` calls it."""
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Dtypes of a model."""
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Any GPU: every operator has a definition in PyTorch's operations."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: it is part of ``config.json``."""
        return []

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Check the whole directory, before anything is started.

        Raises:
            ValueError: if it was altered or does not fit together.
        """
        with refusing_in_one_line():
            require_family(hf_config)
            self.directory = find_model_directory(model_name)
            meta_blocks(self.directory, self.quantization, torch.float32)
            record = self.quantization.model_config
            if record is not None:  # --hf-overrides change it
                require_recorded(record, hf_config, self.directory / "config.json")

    def get_cache_scale_mapper(self) -> WeightsMapper:
        """Names of stored tensors by vLLM's modules."""
        return WeightsMapper(orig_to_new_regex=renaming_rules())

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """What computes a layer; ``None`` for what is not quantized.

        Raises:
            ValueError: for a linear that a decoder block of ours does not have.
        """
        if isinstance(layer, Attention):
            if not hasattr(layer, "query_quant"):  # else it is asked again, with its weights
                _attend_as_asked(layer)
                _when_attached(layer, _put_quantizer_behind_rotary)
            return None
        if not isinstance(layer, LinearBase):
            return None
        config = get_current_vllm_config()
        require_options(config)
        found = LAYER.search(prefix)
        if found is None:
            raise ValueError(f"{prefix} is no linear of a decoder block that duquant knows")
        fused = fused_linear(self._block(int(found[1]), config.model_config.dtype), found[2])
        return PackedLinearMethod(fused, execution_of(config))

    def _block(self, index: int, dtype: torch.dtype) -> nn.Module:
        if self._blocks is None:
            assert self.directory is not None
            self._blocks = meta_blocks(self.directory, self.quantization, dtype)
        return self._blocks[index]

    def __getstate__(self) -> dict[str, Any]:
        """Without blocks: another process makes its own."""
        return {**self.__dict__, "_blocks": None}


def _attend_as_asked(layer: Any) -> None:
    """Put PyTorch's attention into a new layer, if it must be exact or vLLM's lacks its heads."""
    if is_exact(get_current_vllm_config()):
        attend_by_sdpa(layer)
    elif current_platform.is_cpu() and not layer.attn_backend.supports_head_size(layer.head_size):
        attend_by_sdpa(layer)
        logger.info_once(
            "duquant: attention is PyTorch's, as vLLM has none for heads of %d channels",
            layer.head_size,
        )


def _when_attached(child: nn.Module, action: Any) -> None:
    """Call ``action`` with the module that takes ``child`` as its own, once."""

    def hook(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        if module is child:
            handle.remove()
            action(parent)

    handle = register_module_module_registration_hook(hook)


def _put_quantizer_behind_rotary(attention: Any) -> None:
    """Quantize Q and K behind RoPE."""
    qkv, rotary = (getattr(attention, name, None) for name in ("qkv_proj", "rotary_emb"))
    if rotary is None or getattr(qkv, CHILD, None) is None:
        raise ValueError(f"duquant does not know how a {type(attention).__name__} rotates Q and K")
    attention.rotary_emb = QuantizedRotary(rotary, getattr(qkv, CHILD).attention)
