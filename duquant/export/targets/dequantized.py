"""A plain model: the quantized weights as floats, the transforms undone.

A linear of a quantized block reads ``x T`` and holds ``Ŵ ≈ W T``. A model that knows no transforms
reads ``x``, so it gets

    W' = Ŵ T⁻¹        because        x W'ᵀ = (x T) Ŵᵀ

where ``T`` first divides by the smoothing scale, if that could not be folded. Biases of Q, K and V
go back to their projections. Where the recipe subtracts means, a linear reads ``(x - m) T`` and its
bias ``b`` has made that good; the plain one gets

    b' = b - m W'ᵀ        (m times the scale, where the site divides by one)

which needs a bias in every linear. LLaMA, Granite and SmolLM3 have options for that; a model
without is refused. The result has the error of the quantized weights and none of the activations';
any tool can load it.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from duquant.config import Recipe
from duquant.export.targets.plain_parts import plain_parts
from duquant.model.execution import transform_of
from duquant.model.skeleton import build_skeleton
from duquant.model.structure import LINEARS, SITES
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.site import SiteTransform

BIASES = ("attention_bias", "mlp_bias")
"""Options of transformers' configurations that give every linear a bias."""


class Dequantized:
    """bfloat16 weights under the names of the original model."""

    name: ClassVar[str] = "dequantized"
    about: ClassVar[str] = (
        "The quantized weights as bfloat16 numbers, transforms undone: the error of the weights "
        "and none of the activations. It takes the memory of a model that is not quantized."
    )
    dtype: ClassVar[torch.dtype | None] = torch.bfloat16

    def model_config(self, recipe: Recipe, config: dict[str, Any]) -> dict[str, Any]:
        """The same, or with biases, if sites subtract means.

        Raises:
            ValueError: if they do and the model's linears cannot have biases, naming the linears.
        """
        if not recipe.smoothing.subtract_mean:
            return config
        config = config | dict.fromkeys(BIASES, True)
        kind = config["model_type"]
        options = {name: value for name, value in config.items() if name != "model_type"}
        biased = build_skeleton(
            AutoConfig.for_model(kind, **options), torch.float32, "a plain model"
        )
        block = biased.model.layers[0]
        lacking = [name for name in LINEARS if block.get_submodule(name).bias is None]
        if lacking:
            raise ValueError(
                f"smoothing.subtract_mean is true, and a plain {kind} has no bias to take the "
                f"means in {', '.join(lacking)}; quantize without it, or export to native"
            )
        return config

    @torch.no_grad()
    def tensors(self, block: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
        """Weights, biases and norms."""
        tensors = plain_parts(block)
        for site in SITES:
            transform = transform_of(block, site)
            for name in site.linears:
                weight = _plain_weight(block.get_submodule(name), transform)
                tensors[f"{name}.weight"] = weight.to(self.dtype)
                if transform.mean.numel():
                    mean = transform.mean
                    if transform.online_scale.numel():
                        mean = mean * transform.online_scale
                    # by the weight as it is stored, whose rounding the mean then does not meet
                    moved = tensors[f"{name}.weight"].float() @ mean
                    tensors[f"{name}.bias"] = tensors[f"{name}.bias"].float() - moved
        return tensors

    def quantization_config(
        self, recipe: Recipe, checksums: dict[str, str], model_config: dict[str, Any]
    ) -> None:
        """None: the model is not quantized any more."""


def _plain_weight(linear: nn.Module, site: SiteTransform) -> Tensor:
    """The weight ``(out, in)`` for inputs that are not transformed, float32."""
    if isinstance(linear, PackedLinear):
        weight = linear.dequantized()
    else:
        weight = linear.get_buffer("weight").float()
    weight = site.transform.off_weight(weight)
    return weight / site.online_scale if site.online_scale.numel() else weight
