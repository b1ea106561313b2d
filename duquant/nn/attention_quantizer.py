"""Rotating and quantizing Q, K and V, whatever computes attention with them.

Q and K are multiplied by a Hadamard matrix along the head dimension after RoPE, which leaves
``Q Kᵀ`` unchanged and spreads their outlier channels. The matrix has the largest power of two that
divides the head dimension (at most ``block_size``), so it never mixes heads or tokens.

Biases of Q, K and V are added after the quantization (:mod:`duquant.nn.attention_bias`).
"""

from typing import Any

import torch
from torch import Tensor

from duquant.config import Formats
from duquant.formats.number_format import NumberFormat
from duquant.nn.activation import ActivationQuantizer
from duquant.nn.attention_bias import AttentionBiases, RotatedBiases
from duquant.ops.chunks import in_chunks
from duquant.ops.dual_transform import apply_transform, rotation_alone
from duquant.ops.gradient import records_gradient
from duquant.ops.hadamard import hadamard_matrix, largest_power_of_two_divisor
from duquant.ops.kernel_presence import call
from duquant.ops.precision import widen, widen_on_cpu
from duquant.ops.transformed_tokens import is_fused, transformed_values
from duquant.transforms.exact_buffers import ExactBuffers

ATTENTION_NAME = "duquant"
"""Of the attention function, as transformers knows it."""
NO_BIASES = RotatedBiases()


class AttentionQuantizer(ExactBuffers):
    """Rotate and quantize Q and K, quantize V: per token and per head.

    Args:
        head_dim: channels of a head.
        formats: number formats of Q, K and V, whose groups are made to divide a head.
        clip_ratio: clip factor of integers of Q and K; V is not clipped.
        block_size: largest Hadamard matrix.
        biases: what is added after quantizing; ``None`` where the projections keep theirs.
    """

    EXACT = ("hadamard",)
    hadamard: Tensor

    def __init__(
        self,
        head_dim: int,
        formats: Formats,
        *,
        clip_ratio: float,
        block_size: int,
        biases: AttentionBiases | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.model_config: Any = None
        self.hadamard_size = largest_power_of_two_divisor(head_dim, block_size)
        empty = torch.empty(
            self.hadamard_size, self.hadamard_size, dtype=torch.float32, device="cpu"
        )
        self.register_buffer("hadamard", empty, persistent=False)
        self.compute_hadamard()
        self.query = _quantizer(formats.queries, head_dim, clip_ratio)
        self.key = _quantizer(formats.keys, head_dim, clip_ratio)
        self.value = _quantizer(formats.values, head_dim, 1.0)
        self.biases = biases

    def compute_hadamard(self) -> None:
        """Compute the matrix, where it has memory; a model may be built without."""
        if not self.hadamard.is_meta:
            self.hadamard = hadamard_matrix(self.hadamard_size).to(self.hadamard.device)

    def implementation(self) -> str | None:
        """Name of the attention implementation that the model is set to."""
        return getattr(self.model_config, "_attn_implementation", ATTENTION_NAME)

    def rotate(self, heads: Tensor) -> Tensor:
        """Multiply ``(..., head_dim)`` by the block-diagonal Hadamard matrix.

        Half precision becomes float32 on the CPU.
        """
        hadamard = self.hadamard.to(heads.device)  # an offloaded block's may lie elsewhere
        return apply_transform(widen_on_cpu(heads), rotation_alone(hadamard))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        biases: RotatedBiases = NO_BIASES,
        *,
        are_quantized: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantized Q, K, V; shapes ``(batch, heads, tokens, head_dim)`` are kept.

        K and V may come encoded, out of a :class:`duquant.nn.packed_cache.PackedCache`.

        Args:
            query: Q.
            key: K, its bias left out if ``biases`` has it.
            value: V, likewise.
            biases: what is added.
            are_quantized: K and V need nothing more.
        """
        dtype = query.dtype
        query = self.quantized_query(query, biases.query)
        if are_quantized:
            return query, key, value
        if key.dtype == torch.uint8:
            return query, self.decode_key(key, dtype), self.decode_value(value, dtype)
        return query, self.quantized_key(key, biases.key), self.quantized_value(value, biases.value)

    def quantized_query(self, query: Tensor, bias: Tensor | None = None) -> Tensor:
        """Q rotated and quantized, its rotated bias added."""
        return self._rotated(query, self.query, bias)

    def quantized_key(self, key: Tensor, bias: Tensor | None = None) -> Tensor:
        """K rotated and quantized, its rotated bias added."""
        return self._rotated(key, self.key, bias)

    def quantized_value(self, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """V quantized, its bias added."""
        if bias is None:
            whole = self._whole(value, None, self.value)
            return in_chunks(self.value, value, dim=1) if whole is None else whole
        return _add(in_chunks(self.value, widen(value), dim=1), bias, value.dtype)

    def encode(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """K (rotated) and V as bytes, ``(batch, heads, tokens, bytes)``, to be kept in a cache."""
        return self.key.encoded_rows(self.rotate(key)), self.value.encoded_rows(value)

    def decode_key(self, key: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
        """K out of its bytes, its rotated bias added."""
        rotated = None if bias is None else self.rotate(bias)
        return self._decode(key, self.key, dtype, rotated)

    def decode_value(self, value: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
        """V out of its bytes, its bias added."""
        return self._decode(value, self.value, dtype, bias)

    def _rotated(
        self, heads: Tensor, quantizer: ActivationQuantizer, bias: Tensor | None
    ) -> Tensor:
        whole = None if bias is not None else self._whole(heads, self.hadamard, quantizer)
        if whole is not None:
            return whole

        def work(chunk: Tensor) -> Tensor:
            rotated = self.rotate(chunk)
            quantized: Tensor = quantizer(rotated if bias is None else widen(rotated))
            return quantized.to(heads.dtype) if bias is None else quantized

        quantized = in_chunks(work, heads, dim=1)
        return quantized if bias is None else _add(quantized, self.rotate(bias), heads.dtype)

    def _whole(
        self, heads: Tensor, rotation: Tensor | None, quantizer: ActivationQuantizer
    ) -> Tensor | None:
        """Heads rotated and quantized in one step, where there is a kernel for it.

        A compiler fuses quantization alone with what follows, the writing into a cache.
        """
        grid = quantizer.fixed_grid()
        if grid is None or records_gradient(heads):
            return None
        if rotation is None and torch.compiler.is_compiling():
            return None
        if not is_fused("transformed_values", heads, rotation):
            return None
        bits, clip_ratio, symmetric = grid
        values: Tensor = call(transformed_values, heads, rotation, bits, clip_ratio, symmetric)
        return values

    def _decode(
        self,
        tokens: Tensor,
        quantizer: ActivationQuantizer,
        dtype: torch.dtype,
        bias: Tensor | None,
    ) -> Tensor:
        heads = quantizer.decoded_rows(tokens, self.head_dim)
        return heads.to(dtype) if bias is None else _add(heads, bias, dtype)


def _quantizer(form: NumberFormat, head_dim: int, clip_ratio: float) -> ActivationQuantizer:
    ratio = clip_ratio if form.learns_clip_factors else 1.0
    return ActivationQuantizer(form.fitted_to(head_dim), ratio)


def _add(heads: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum in float32 or wider, then rounded to ``dtype``."""
    return (heads + bias).to(dtype)
