"""A decoder block that learns: clip factors of its weights, and what a recipe trains beside them.

``QuantBlock`` owns all parameters that are trained, two clip factors per output channel and those
of :mod:`duquant.modules.activation_side`, and borrows the block it trains them for: the
transformers layer with its frozen weights stays outside of the module tree, in a
:class:`~duquant.model.surgery.QuantizedBlock`, so Lightning neither checkpoints nor replicates it.

The life of a block:

    enter     smooth, insert quantizers, search transforms on the calibration mean, then whatever
              has to be found on the calibration samples: peaks, the clip factors' first values
    train     LWC: the distance (:mod:`duquant.modules.block_loss`) between the quantized block's
              output, in the paper on the quantized stream, and the full-precision block's output on
              its own stream (DuQuant section 3.1)
    settle    what was learned of the activations becomes constant
    round     choose the codes of every weight, for good
    release   drop the weights
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.model.batch import BlockBatch
from duquant.model.channel_ranges import ChannelRange
from duquant.model.decoder import BlockContext
from duquant.model.sample_decisions import calibrate_on_samples
from duquant.model.site_grams import collect_site_grams
from duquant.model.site_report import SiteReport, report_site
from duquant.model.smoothing import smooth_block
from duquant.model.structure import SITES, Site, short_name
from duquant.model.surgery import QuantizedBlock, calibrate_sites, insert_quantizers
from duquant.model.weight_decisions import Chunks, round_weights, search_clips
from duquant.modules.activation_side import ActivationSide
from duquant.modules.block_loss import block_loss
from duquant.modules.block_optimizer import set_learning_rate
from duquant.modules.learner import Learner
from duquant.modules.weight_clips import initial_clips, new_clip
from duquant.nn.clipping import ClipFactors, FixedClip
from duquant.nn.site import SiteTransform
from duquant.ops.rotation import BaseSource
from duquant.processes import ALONE, Processes


class QuantBlock(Learner):
    """What one decoder block learns, and the block while it is being calibrated.

    Args:
        shapes: ``(out, in)`` of each linear by its name in the block.
        recipe: how to quantize.
        index: its place in the model, for messages.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], recipe: Recipe, index: int = 0
    ) -> None:
        super().__init__()
        self.index = index
        self.recipe = recipe
        self.linear_names = tuple(shapes)
        self.clips = nn.ModuleDict(
            {short_name(name): new_clip(shape, recipe) for name, shape in shapes.items()}
        )
        widths = {site.name: shapes[site.linears[0]][1] for site in SITES}
        self.activation_side = ActivationSide(widths, recipe)
        self.quantized: QuantizedBlock | None = None
        self.context: BlockContext = {}

    @torch.no_grad()
    def enter(
        self,
        block: nn.Module,
        ranges: Mapping[str, ChannelRange],
        context: BlockContext,
        calibration_mean: Tensor,
        samples: Chunks,
        generator: torch.Generator,
        *,
        processes: Processes = ALONE,
        draw_base: BaseSource | None = None,
    ) -> tuple[Tensor, dict[str, SiteReport]]:
        """Make the block ready to train.

        Args:
            block: decoder block with real weights, on its device; taken over and changed.
            ranges: what the channels of every site hold under full precision.
            context: what the block's forward needs beside hidden states.
            calibration_mean: calibration tensor ``(1, tokens, hidden)`` of the rotation search.
            samples: gives the block's calibration inputs in chunks ``(batch, tokens, hidden)``, on
                its device, as often as they are needed.
            generator: randomness of the search.
            processes: who holds the other samples.
            draw_base: replaces the random base matrices, in tests.

        Returns:
            The block's output on ``calibration_mean`` and what each site's transform did. Both are
            computed with the clip factors at sigmoid(4), also when training was resumed.
        """
        smoothed = smooth_block(block, ranges, self.recipe)
        clips = {name: self._clip(name) for name in self.linear_names}
        self.quantized = insert_quantizers(block, self.recipe, clips, smoothed)
        self.context, self.processes = context, processes
        reports: dict[str, SiteReport] = {}

        def observe(site: Site, transform: SiteTransform, x: Tensor) -> None:
            reports[site.name] = report_site(x, smoothed.scales.get(site.name), transform.transform)

        with initial_clips(self.clips):
            output = calibrate_sites(
                self.quantized,
                lambda: self(calibration_mean),
                self.recipe,
                generator,
                observe=observe,
                draw_base=draw_base,
            )
            calibrate_on_samples(self.quantized, self.recipe, self, samples, processes)
        self.activation_side.attach(self.quantized, begins=not self.has_begun)
        self._begin(samples)
        return output, reports

    def settle(self) -> dict[str, float]:
        """End the training: what was learned of the activations is constant from now on.

        Returns:
            Largest condition number of every transform that was trained, by site.
        """
        assert self.quantized is not None, "enter a block first"
        return self.activation_side.settle(self.quantized)

    def round(self, samples: Chunks) -> str:
        """Choose the weights' codes; ``samples`` as in :meth:`enter`.

        Returns:
            What :func:`~duquant.model.weight_decisions.round_weights` says of its damping.
        """
        assert self.quantized is not None, "enter a block first"
        rounding = self.recipe.weight_rounding
        return round_weights(self.quantized, rounding, self, samples, self.processes)

    def forward(self, hidden: Tensor) -> Tensor:
        """Output of the quantized block, ``(batch, tokens, hidden)``."""
        assert self.quantized is not None, "enter a block first"
        output: Tensor = self.quantized.layer(hidden, **self.context)
        return output

    def loss(self, batch: BlockBatch) -> Tensor:
        """How far the block's outputs are from their targets."""
        return block_loss(self(batch.quantized_input), batch, self.recipe)

    def follow_schedule(self, trainer: Trainer, batch_index: int, first_epoch: int = 0) -> None:
        """LWC's schedule; as every block has as many epochs, ``first_epoch`` may be any block's."""
        lwc = self.recipe.lwc
        set_learning_rate(
            trainer,
            batch_index,
            lwc.epochs,
            schedule=lwc.schedule,
            rate=lwc.learning_rate,
            first_epoch=first_epoch,
        )

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let what is refused meanwhile say which block it is about."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"block {self.index}: {error}") from error

    def release(self) -> None:
        """Drop the borrowed block; the clip factors stay."""
        self.quantized = None
        self.context = {}

    def clip_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Learned factors on maximum and minimum, by linear; empty without LWC."""
        learned = {n: clip() for n, clip in self.clips.items() if isinstance(clip, ClipFactors)}
        return {name: (clip.high, clip.low) for name, clip in learned.items()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the block learns, as an optimizer's groups: ``params`` and ``lr``."""
        factors = list(self.clips.parameters())
        groups = [{"params": factors, "lr": self.recipe.lwc.learning_rate}] if factors else []
        return groups + self.activation_side.parameter_groups()

    def decisions(self) -> Iterator[Tensor]:
        """What was decided for the block: transforms, smoothing scales, clip factors."""
        assert self.quantized is not None, "enter a block first"
        for site in self.quantized.sites.values():
            yield from site.buffers()
        yield from self.quantized.scales.values()
        yield from self.parameters()
        for linear in self.quantized.linears.values():
            if linear.rounded is not None:
                yield linear.rounded.codes

    def _begin(self, samples: Chunks) -> None:
        """Choose the clip factors that training starts from, once in the life of a block.

        Factors that are not learned are no part of a checkpoint: they are searched at every entry.
        """
        starts = self.recipe.has_lwc and not self.has_begun
        if (starts and self.recipe.lwc.initialization == "search") or self.recipe.searches_clips:
            assert self.quantized is not None
            grams = collect_site_grams(self.quantized.sites, self, samples(), self.processes)
            search_clips(self.quantized, grams)
        self.has_begun.fill_(self.recipe.has_lwc)

    def _clip(self, linear: str) -> ClipFactors | FixedClip:
        clip = self.clips[short_name(linear)]
        assert isinstance(clip, ClipFactors | FixedClip)
        return clip


def block_generator(seed: int, index: int) -> torch.Generator:
    """Randomness of block ``index``'s rotation search, on the CPU."""
    return torch.Generator(device="cpu").manual_seed(seed * 1_000_003 + index)
