"""LoRA adapters beside packed linears, by PEFT.

PEFT adapts the layers it knows, and takes others by a mapping in the configuration of an adapter
("dynamic dispatch of custom modules"). The weight stays packed and frozen, the adapter is trained
in floating point:

    y = x · dequantized(W)ᵀ + bias  +  (α / r) · x Aᵀ Bᵀ

``x`` is what reaches the linear: for q, k, v, gate and up that is the site's transformed and
quantized activation, for o and down the activation before the transform. An adapter therefore
belongs to the quantized model it was trained on, and none of the original model fits it.
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from duquant.nn.packed_linear import PackedLinear
from duquant.ops.affine import dequantize
from duquant.ops.quantized_tokens import decode_tokens

INITIALIZATIONS = (True, False, "gaussian")
"""Those that do not look at the weight."""


def register_lora(config: LoraConfig) -> LoraConfig:
    """Let a LoRA configuration adapt packed linears.

    ::

        model = get_peft_model(model, duquant.register_lora(LoraConfig(r=16)))
        model.save_pretrained("adapter")
        config = duquant.register_lora(LoraConfig.from_pretrained("adapter"))
        model = PeftModel.from_pretrained(quantized_model, "adapter", config=config)

    Args:
        config: PEFT's configuration, also one that was loaded; the mapping is no part of its file.

    Returns:
        The same one.

    Raises:
        ValueError: if it asks for what needs a floating-point weight.
    """
    if config.init_lora_weights not in INITIALIZATIONS:
        raise ValueError(
            f"init_lora_weights is {config.init_lora_weights!r}, which needs a floating-point "
            f"weight; a packed one takes {', '.join(map(str, INITIALIZATIONS))}"
        )
    if config.use_dora:
        raise ValueError("use_dora needs a floating-point weight; a packed one takes plain LoRA")
    config._register_custom_module({PackedLinear: LoraPackedLinear})
    return config


class LoraPackedLinear(nn.Module, LoraLayer):
    """A packed linear with adapters beside it; PEFT builds it.

    Args:
        base_layer: the linear.
        adapter_name: name of its first adapter.
        config: of the adapter.
        r: rank.
        lora_alpha: numerator of the adapter's factor.
        kwargs: what PEFT tells every layer.
    """

    base_layer: Any  # these are PEFT's
    lora_A: Any
    lora_B: Any
    lora_dropout: Any
    scaling: dict[str, float]
    active_adapters: list[str]
    disable_adapters: bool
    update_layer: Any
    _cast_input_dtype: Any

    def __init__(
        self,
        base_layer: PackedLinear,
        adapter_name: str,
        config: LoraConfig,
        r: int = 8,
        lora_alpha: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        base_layer.restore()  # PEFT looks at the packed weight
        LoraLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config)

    def forward(self, x: Tensor, *, adapter_names: list[str] | None = None) -> Tensor:
        """Map ``(..., in)``, floats or encoded integers, to ``(..., out)``.

        Raises:
            ValueError: if rows of a batch are to have different adapters.
        """
        if adapter_names is not None:
            raise ValueError("adapter_names: a packed linear has one adapter for the whole batch")
        result: Tensor = self.base_layer(x)
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or not active:
            return result
        values, dtype = _values(x), result.dtype
        for name in active:
            down, up = self.lora_A[name], self.lora_B[name]
            given = self.lora_dropout[name](self._cast_input_dtype(values, down.weight.dtype))
            result = result + up(down(given)) * self.scaling[name]
        return result.to(dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: the sum of a packed weight and an adapter does not fit into its integers.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "an adapter cannot be merged into a packed weight: keep it beside the model "
            "(PeftModel.from_pretrained), or merge it before quantizing"
        )

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, PackedLinear)
        return module.in_features, module.out_features

    def _get_base_layer_device_and_dtype(
        self, base_layer: nn.Module
    ) -> tuple[torch.device, torch.dtype]:
        assert isinstance(base_layer, PackedLinear)
        return base_layer.scale.device, base_layer.output_like.dtype


def _values(x: Tensor) -> Tensor:
    """What encoded tokens stand for; floats as they are."""
    if x.dtype != torch.uint8:
        return x
    q, grid = decode_tokens(x)
    return dequantize(q.float(), grid)
