"""The biases of Q, K and V stay out of their quantization.

A bias may be a hundred times larger than what the weights contribute (Qwen2.5: a bias of 350 in K,
the rest of K a few units). Quantized with it, a head's 16 levels would all go to the bias. But the
bias's part is known exactly. RoPE is linear, so at position ``t``

    RoPE_t(W x + b) = RoPE_t(W x) + RoPE_t(b)

and the second term depends on the position alone. So the projections of a quantized block have no
bias; it is moved here, attention quantizes ``RoPE_t(W x)`` (and ``W x`` of V), and adds the bias's
part afterwards, in float32. The same rotation is applied to it as to Q and K: the family's own
``apply_rotary_pos_emb``, with the ``position_embeddings`` that the attention module is called with,
so scaled, partial and interleaved rotations are right without being known here.

A bias stays where it was if nothing is quantized behind it (16 bits), or if a norm stands between
the projection and RoPE (Qwen3), which makes it no additive term.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from duquant.ops.affine import UNQUANTIZED_BITS

NORMS = {"query": "q_norm", "key": "k_norm", "value": "v_norm"}
"""What may stand behind a projection, by operand."""
PositionEmbeddings = tuple[Tensor, Tensor]
"""cos and sin, ``(batch or 1, tokens, channels that rotate)``."""
Rotation = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class RotatedBiases(NamedTuple):
    """What is added to Q, K and V, ``(batch or 1, heads, tokens or 1, head_dim)`` in float32.

    Attributes:
        query: of Q; ``None`` adds nothing.
        key: of K.
        value: of V.
    """

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None


class AttentionBiases(nn.Module):
    """Biases that were taken from a block's projections.

    Args:
        head_dim: channels of a head.
        biases: ``(heads · head_dim,)`` by operand: ``query``, ``key``, ``value``, or fewer.
    """

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None

    def __init__(self, head_dim: int, biases: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.head_dim = head_dim
        for operand in NORMS:
            self.register_buffer(operand, biases.get(operand))

    @property
    def follow_positions(self) -> bool:
        """Whether one of them goes through RoPE."""
        return self.query is not None or self.key is not None

    def forward(
        self,
        positions: PositionEmbeddings | None,
        rotation: Rotation | None,
        operands: Collection[str] = ("query", "key", "value"),
    ) -> RotatedBiases:
        """The biases as they are added at these positions.

        Args:
            positions: cos and sin of the tokens.
            rotation: of the family; ``None`` in a layer that does not rotate.
            operands: those that are asked for.
        """
        given = {operand: getattr(self, operand) for operand in operands}
        heads = {
            operand: bias.float().view(1, -1, 1, self.head_dim)
            for operand, bias in given.items()
            if bias is not None
        }
        turned = [operand for operand in ("query", "key") if operand in heads]
        if turned and positions is not None and rotation is not None:
            cos, sin = (each.to(heads[turned[0]].device) for each in positions)
            shape = (cos.shape[0], -1, cos.shape[1], -1)
            first, last = (heads[operand].expand(shape) for operand in (turned[0], turned[-1]))
            if len(turned) == 1:
                first = first[:, :0]  # Q of no heads
            rotated = rotation(first, last, cos, sin)
            heads |= dict(zip(turned, rotated[-len(turned) :], strict=True))
        return RotatedBiases(**heads)


def rotation_of(attention: nn.Module) -> Rotation | None:
    """How an attention module rotates Q and K; ``None`` if it does not (some of SmolLM3's)."""
    if not getattr(attention, "use_rope", True):
        return None
    return _family_rotation(attention)


def separable_biases(attention: nn.Module, bits: tuple[int, int, int]) -> list[str]:
    """Operands whose bias can be taken out of the quantization.

    Args:
        attention: a decoder's attention module with its own projections.
        bits: of Q, K and V.
    """
    return [
        operand
        for (operand, norm), width in zip(NORMS.items(), bits, strict=True)
        if getattr(attention.get_submodule(projection_of(operand)), "bias", None) is not None
        and width < UNQUANTIZED_BITS
        and getattr(attention, norm, None) is None
        and (operand == "value" or _family_rotation(attention) is not None)
    ]


def projection_of(operand: str) -> str:
    """``query`` -> ``q_proj``."""
    return f"{operand[0]}_proj"


def _family_rotation(attention: nn.Module) -> Rotation | None:
    family = sys.modules[type(attention).__module__]
    rotation: Rotation | None = getattr(family, "apply_rotary_pos_emb", None)
    return rotation
