"""The layout of compressed-tensors, for recipes that it can express.

It stores integers with a scale and a zero point per row or group, as :mod:`duquant.formats.integer`
does, so the same weights are written, bit by bit:

=============  ===================  ================================================================
recipe         format there         stored of a linear
=============  ===================  ================================================================
W4A16, W8A16   ``pack-quantized``   ``weight_packed`` in int32, scale, shape; asymmetric: zero point
W8A8           ``int-quantized``    ``weight`` in int8, scale
=============  ===================  ================================================================

vLLM 0.32 takes ``CompressedTensorsWNA16`` for the first, with Marlin's kernel, and
``CompressedTensorsW8A8Int8`` for the second, both from Turing (compute capability 7.5) on: read in
its source, not run. transformers reads asymmetric packed weights only with
``CompressedTensorsConfig(dequantize=True)``: compressed-tensors 0.20 prepares zero points unpacked.

Integers there are signed: codes and zero points are ours minus ``2**(bits - 1)``, which packed are
the same bits; symmetric ones have their zero in the middle, one above ours.

Of transforms it expresses Hadamard rotations: see :mod:`duquant.export.targets.hadamard_scheme`.
What it cannot express is refused: searched rotations and permutations, affine blocks, means, scales
divided online, Q, K and V in few bits, clip factors of activations, other widths and formats.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.export.targets.hadamard_scheme import (
    APPLY,
    hadamard_scheme,
    require_hadamard,
    transform_problem,
)
from duquant.export.targets.plain_parts import plain_parts
from duquant.formats.integer import Integer
from duquant.model.structure import LINEARS
from duquant.nn.packed_linear import PackedLinear
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.ops.packing import pack

WORD = 4
"""Bytes of the words that integers are packed into."""


class CompressedTensors:
    """Weights as compressed-tensors stores them; activations are quantized by who runs them."""

    name: ClassVar[str] = "compressed-tensors"
    about: ClassVar[str] = (
        "The quantized weights as compressed-tensors stores them, for transformers (with the "
        "package compressed-tensors) and vLLM. Scales are float32; who holds them in half "
        f"precision rounds them.\n\n{APPLY}"
    )
    dtype: ClassVar[torch.dtype | None] = None

    def model_config(self, recipe: Recipe, config: dict[str, Any]) -> dict[str, Any]:
        """The same, if the layout has a place for everything.

        Raises:
            ValueError: naming all options that it has none for.
        """
        checks = (transform_problem, _smoothing, _weights, _attention, _activations, _clips)
        problems = [problem for problem in (check(recipe) for check in checks) if problem]
        if problems:
            told = "; ".join(problems)
            raise ValueError(f"{told}. Quantize without that, or export to another layout")
        return config

    @torch.no_grad()
    def tensors(self, block: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
        """Weights as they are packed, scales, zero points; biases and norms.

        Raises:
            ValueError: if a linear's numbers do not fit, naming it.
        """
        require_hadamard(block)
        tensors = plain_parts(block)
        store = _packed if _is_weights_only(recipe) else _bytes
        for name in LINEARS:
            linear = block.get_submodule(name)
            assert isinstance(linear, PackedLinear)
            for part, tensor in store(linear, name).items():
                tensors[f"{name}.{part}"] = tensor
        return tensors

    def quantization_config(
        self, recipe: Recipe, checksums: dict[str, str], model_config: dict[str, Any]
    ) -> dict[str, Any]:
        """One group of linears that are all alike; the head is left out."""
        form = recipe.formats.weights
        assert isinstance(form, Integer)
        weights = _arguments(form.bits, form.symmetric, "channel")
        if form.group_size is not None:
            weights |= {"strategy": "group", "group_size": form.group_size}
        activations, layout = None, "pack-quantized"
        if not _is_weights_only(recipe):
            layout = "int-quantized"
            activations = _arguments(recipe.formats.activations.bits, False, "token")
            activations |= {"dynamic": True}
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": activations,
            "output_activations": None,
            "format": layout,
        }
        config = {
            "quant_method": "compressed-tensors",
            "format": layout,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
        }
        transform = hadamard_scheme(recipe)
        return {**config, "transform_config": transform} if transform else config


def _smoothing(recipe: Recipe) -> str:
    """What is wrong with smoothing, if anything."""
    smoothing = recipe.smoothing
    if smoothing.subtract_mean:
        return "smoothing.subtract_mean is true, and compressed-tensors has no place for the means"
    if smoothing.enabled and smoothing.attention_output == "query_channel":
        return "smoothing.attention_output is 'query_channel', which divides online"
    return ""


def _weights(recipe: Recipe) -> str:
    form = recipe.formats.weights
    if not isinstance(form, Integer) or form.bits not in (4, 8):
        return f"weights are {form.name} of {form.bits} bits: compressed-tensors packs 4 or 8"
    return ""


def _attention(recipe: Recipe) -> str:
    formats = recipe.formats
    bits = {
        "query_bits": formats.queries.bits,
        "key_bits": formats.keys.bits,
        "value_bits": formats.values.bits,
    }
    narrow = [f"{option} is {n}" for option, n in bits.items() if n < UNQUANTIZED_BITS]
    if narrow:
        return f"{', '.join(narrow)}: compressed-tensors leaves attention unquantized (16)"
    return ""


def _activations(recipe: Recipe) -> str:
    if _is_weights_only(recipe):
        return ""
    ours, weights = recipe.formats.activations, recipe.formats.weights
    if not isinstance(ours, Integer) or ours != Integer(bits=8):
        return f"activations are {ours}: they must be 8 bits per token, asymmetric, or unquantized"
    if weights != Integer(bits=8, symmetric=True):
        return "activations are quantized, so weights must be 8 bits, symmetric, without groups"
    return ""


def _clips(recipe: Recipe) -> str:
    clipping = recipe.clipping
    if _is_weights_only(recipe):
        return ""
    is_fixed = clipping.activations == "fixed" and clipping.activation_ratio == 1.0
    if not is_fixed or recipe.training.activation_clips:
        return (
            "activations are clipped (clipping.activation_ratio, clipping.activations, "
            "training.activation_clips)"
        )
    return ""


def _is_weights_only(recipe: Recipe) -> bool:
    return recipe.formats.activations.bits >= UNQUANTIZED_BITS


def _arguments(bits: int, is_symmetric: bool, strategy: str) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": is_symmetric,
        "strategy": strategy,
        "dynamic": False,
    }


def _packed(linear: PackedLinear, name: str) -> dict[str, Tensor]:
    """Codes in words; zero points of what is asymmetric too, along the rows."""
    bits, last = linear.form.bits, 2**linear.form.bits - 1
    stored = {
        "weight_scale": linear.scale.float(),
        "weight_shape": torch.tensor([linear.out_features, linear.in_features], device="cpu"),
    }
    if _is_symmetric(linear):
        codes = _signed(linear, name) + 2 ** (bits - 1)
        return {**stored, "weight_packed": _words(pack(codes, bits))}
    zero = linear.zero
    if int(zero.min()) < 0 or int(zero.max()) > last:
        raise ValueError(
            f"{name} has zero points of {int(zero.min())} to {int(zero.max())}: a group of weights "
            f"lies far from zero, and compressed-tensors packs 0 to {last}; take larger groups"
        )
    packed_zero = _words(pack(zero.T, bits)).T
    codes = _words(pack(linear.codes(), bits))
    return {**stored, "weight_packed": codes, "weight_zero_point": packed_zero}


def _bytes(linear: PackedLinear, name: str) -> dict[str, Tensor]:
    """Signed codes, one per byte."""
    weight = _signed(linear, name).to(torch.int8)
    return {"weight": weight, "weight_scale": linear.scale.float()}


def _is_symmetric(linear: PackedLinear) -> bool:
    return isinstance(linear.form, Integer) and linear.form.symmetric


def _signed(linear: PackedLinear, name: str) -> Tensor:
    """Codes of a symmetric range as multiples of its scale, ``(out, in)``."""
    largest = 2 ** (linear.form.bits - 1) - 1
    signed: Tensor = linear.codes().to(torch.int16) - largest
    if int(signed.max()) > largest:
        raise ValueError(
            f"{name} has a weight of {int(signed.max())} steps, and compressed-tensors ends at "
            f"{largest}: its range was clipped; set clipping.weight_ratio to 1 and lwc.epochs to 0"
        )
    return signed


def _words(packed: Tensor) -> Tensor:
    """Rows of bytes as rows of int32, padded by zeros."""
    padding = -packed.shape[1] % WORD
    return torch.nn.functional.pad(packed, (0, padding)).contiguous().view(torch.int32)
