"""In which order a block's linears are rounded, and what they are told of their inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from duquant.formats.number_format import NO_CLIP, Clip, NumberFormat
from duquant.model.decoder import Decoder
from duquant.model.site_grams import collect_site_grams
from duquant.model.structure import SITES
from duquant.model.weight_decisions import round_weights
from duquant.rounding.nearest import Nearest
from duquant.rounding.weight_rounding import Rounded
from tests.block_by_block import CPU, quantize_decoder, small_recipe
from tests.tiny_models import FAMILIES, token_ids, write_tiny_model

IDS = token_ids(4, 24)


@dataclass(frozen=True)
class Halving:
    """Rounds half of each weight, so that nobody can miss it; keeps what it was told."""

    name: ClassVar[str] = "halving"
    needs_gram: ClassVar[bool] = True
    grams: list[Tensor] = field(default_factory=list)

    def __call__(
        self, weight: Tensor, form: NumberFormat, clip: Clip = NO_CLIP, gram: Tensor | None = None
    ) -> Rounded:
        return Nearest()(weight / 2, form, clip)

    def together(
        self,
        weights: Sequence[Tensor],
        form: NumberFormat,
        clips: Sequence[Clip],
        gram: Tensor | None = None,
    ) -> list[Rounded]:
        assert gram is not None
        self.grams.append(gram)
        return [self(weight, form, clip) for weight, clip in zip(weights, clips, strict=True)]


def test_later_sites_see_q_k_and_v_rounded_and_the_rest_at_their_nearest_codes(
    tmp_path: Path,
) -> None:
    decoder = Decoder(str(write_tiny_model(tmp_path, FAMILIES["llama"])), torch.float32)
    inputs, context = decoder.embed(IDS, CPU), decoder.contexts(IDS.shape[1], CPU)[0]
    rounding, chunks = Halving(), [inputs[:3], inputs[3:]]
    tested, expected = (
        quantize_decoder(decoder, small_recipe(), IDS, rounded=False)[0] for _ in range(2)
    )
    round_weights(tested, rounding, partial(tested.layer, **context), partial(list, chunks))

    first = [expected.linears[name] for name in SITES[0].linears]
    forward = partial(expected.layer, **context)
    before = collect_site_grams(expected.sites, forward, chunks)
    for linear in first:
        linear.round(rounding, before[SITES[0].name].gram)
    behind = collect_site_grams(expected.sites, forward, chunks)
    told = rounding.grams[: len(SITES)]
    torch.testing.assert_close(told[0], before[SITES[0].name].gram)
    for site, gram in zip(SITES[1:], told[1:], strict=True):
        torch.testing.assert_close(gram, behind[site.name].gram)
        assert not torch.allclose(gram, before[site.name].gram)
    for name, linear in tested.linears.items():
        assert linear.rounded is not None, name
