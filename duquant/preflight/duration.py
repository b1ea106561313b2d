"""Time: a thin block is calibrated on a few tokens, and what that took is multiplied.

Every part of a block's turn is run once to warm up and then timed with the code of the run itself.
Where a part takes tokens it gets at most :data:`MOST_TOKENS`. A GPU is timed with a block of full
width and more tokens, as it will run: small work takes the time of its calls. Parts are multiplied
by how often they happen, by tokens, and by the weights of a block over those of the thin one; steps
of a search by width and tokens, as if in any width the same share of rows could be skipped.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from duquant.calibration import BlockCalibration, open_streams
from duquant.data.streams import CPU, BlockSamples, Streams, StreamSizes
from duquant.export.model_directory import ModelDirectory
from duquant.model.batch import BlockBatch
from duquant.model.block_error import num_probed
from duquant.model.block_forward import run_block
from duquant.model.decoder import BlockContext, Decoder
from duquant.model.structure import linear_shapes
from duquant.modules.block import QuantBlock
from duquant.ops.freed_memory import return_freed_memory
from duquant.preflight.device_clock import DeviceClock
from duquant.preflight.job import Job
from duquant.preflight.thin_model import write_thin_model

MOST_TOKENS = 1024
MOST_TOKENS_ON_A_GPU = 8192
"""Fewer would be over before the next call has come."""
SEARCH_STEPS = 24
"""Steps of the rotation search that is timed."""

PASSES_OF_DISTILLATION = 4
"""Of a token through a block: forward, once more, and backward, which takes two."""
PASSES_OF_HEAD = 3
"""The original's predictions, the quantized model's, and the gradient of its output."""
PASSES_OF_ROUNDING = 2
"""Of all tokens through a quantized block: for the Gram matrices, and on to the next block."""


@dataclass(frozen=True)
class BlockSeconds:
    """Seconds of the parts of a thin block's turn.

    Attributes:
        load: read its weights.
        forward: a token through it in full precision.
        quantized: a token through it when it is quantized.
        transform: smooth and rotate it, the search itself not counted.
        search_step: one step of all rotation searches, for one token of the calibration mean.
        step: one LWC step; 0 without LWC.
        store: round, pack and write it.
        restore: read it and unpack its weights.
        weights: of its linears.
    """

    load: float
    forward: float
    quantized: float
    transform: float
    search_step: float
    step: float
    store: float
    restore: float
    weights: int


@dataclass(frozen=True)
class Duration:
    """Seconds of a run.

    Attributes:
        per_block: calibration of one block.
        calibration: all that are left, and the whole model's distillation.
        validation: the perplexities.
    """

    per_block: float
    calibration: float
    validation: float


def estimate_duration(
    job: Job, device: torch.device, *, blocks_left: int, picture_seconds: float
) -> Duration:
    """Time a thin block and multiply.

    Args:
        job: what is to be done.
        device: where.
        blocks_left: blocks that are not calibrated yet.
        picture_seconds: what a block's pictures and logs take.
    """
    with tempfile.TemporaryDirectory() as folder:
        part = _Probe(job, Path(folder), device).measure()
    return_freed_memory()
    size, sizes, recipe = job.block_weights / part.weights, job.streams, job.recipe
    tokens = sizes.samples * sizes.tokens
    passes = 1 + sizes.has_augmented
    probed = part.quantized * min(num_probed(sizes.tokens), sizes.samples) * sizes.tokens
    seconds = part.load + part.forward * tokens * passes + part.transform + part.store + probed
    if recipe.has_lwc:
        steps = recipe.lwc.epochs * -(-sizes.samples // job.batch_size)
        seconds += part.quantized * tokens + part.step * steps
    if recipe.weight_rounding.needs_gram:
        seconds += PASSES_OF_ROUNDING * part.quantized * tokens
    search = part.search_step * sizes.tokens * recipe.rotation.max_steps * size**0.5
    per_block = seconds * size + search + picture_seconds
    calibration = per_block * blocks_left + _distillation(job, part, size)
    return Duration(per_block, calibration, _validation(job, part, size))


def _distillation(job: Job, part: BlockSeconds, size: float) -> float:
    sizes = job.streams
    tokens = job.recipe.distillation.epochs * sizes.samples * sizes.tokens
    passes = PASSES_OF_DISTILLATION - (not job.gradient_checkpointing)
    blocks = job.decoder.num_blocks * part.quantized * passes
    head = job.embeddings / job.block_weights * part.forward * PASSES_OF_HEAD
    return (blocks + head) * tokens * size


def _validation(job: Job, part: BlockSeconds, size: float) -> float:
    tokens = sum(job.windows) * job.streams.tokens
    quantized = 1 + job.has_plain
    load = part.load if job.has_plain or job.has_full_precision else 0.0
    reading = (load + part.restore * quantized) * job.num_chunks
    running = (part.forward * job.has_full_precision + part.quantized * quantized) * tokens
    head = job.embeddings / job.block_weights * part.forward * tokens * job.num_variants
    return (job.decoder.num_blocks * (reading + running) + head) * size


class _Probe:
    """A thin block and a little of everything that happens to it."""

    def __init__(self, job: Job, folder: Path, device: torch.device) -> None:
        self.recipe, self.device, self.clock = job.recipe, device, DeviceClock(device)
        is_host = device.type == "cpu"
        self.decoder: Decoder = write_thin_model(
            folder / "thin", job.decoder, job.recipe, whole=not is_host
        )
        self.directory = ModelDirectory(folder / "model", self.recipe)
        most = MOST_TOKENS if is_host else MOST_TOKENS_ON_A_GPU
        length = min(job.streams.tokens, most // 2)
        self.batch = batch = min(job.batch_size, max(1, most // length))
        self.asked = job.batch_size * job.streams.tokens
        samples = max(batch, min(job.streams.samples, most // length))
        self.sizes = StreamSizes.of(
            self.recipe, samples, length, self.decoder.hidden_size, self.decoder.dtype
        )
        self.context: BlockContext = self.decoder.contexts(length, device)[0]
        place = device if job.streams_on_gpu else CPU
        self.streams = Streams.draft(self.sizes, place, at_start=True)
        ids = torch.arange(samples * length, device="cpu").view(samples, length)
        open_streams(self.decoder, ids % int(self.decoder.config.vocab_size), self.streams, device)
        self.streams.full_precision[:][..., ::97] *= 10  # channels that a search has to spread

    def measure(self) -> BlockSeconds:
        """Run every part."""
        layer = self.decoder.load_block(0).to(self.device)
        chunk = self.streams.full_precision[:]
        tokens = self.sizes.samples * self.sizes.tokens
        with torch.no_grad():
            forward = self.clock.settled(lambda: run_block(layer, chunk, self.context, self.device))
        load = self.clock.settled(lambda: self.decoder.load_block(0))
        self._enter(1)
        once, often = (self.clock.once(lambda n=n: self._enter(n)) for n in (1, SEARCH_STEPS))  # type: ignore[misc]
        step = self._lwc_step()
        block = self.block
        assert block.quantized is not None
        quantized_block = block.quantized
        rounding = self.clock.once(self.calibration.round)
        store = self.clock.once(lambda: self.directory.write_block(0, quantized_block))
        with torch.no_grad():
            run = self.clock.settled(
                lambda: run_block(quantized_block.layer, chunk, self.context, self.device)
            )
        restore = self.clock.settled(self._restore)
        per_step = max(0.0, (often - once) / (SEARCH_STEPS - 1))
        transform = max(0.0, once - per_step - forward)
        shapes = linear_shapes(self.decoder.meta_block()).values()
        return BlockSeconds(
            load=load,
            forward=forward / tokens,
            quantized=run / tokens,
            transform=transform,
            search_step=per_step / self.sizes.tokens,
            step=step,
            store=store + rounding,
            restore=max(0.0, restore - run / self.sizes.samples),
            weights=sum(rows * columns for rows, columns in shapes),
        )

    def _enter(self, steps: int) -> None:
        rotation = replace(self.recipe.rotation, max_steps=steps)
        recipe = replace(self.recipe, rotation=rotation)
        self.block = QuantBlock(linear_shapes(self.decoder.meta_block()), recipe)
        draft = Streams.draft(self.sizes, self.streams.full_precision.device)
        self.calibration = BlockCalibration(
            self.block, self.streams, draft, self.context, self.device
        )
        generator = torch.Generator(device="cpu").manual_seed(0)
        self.calibration.enter(self.decoder.load_block(0), generator)

    def _lwc_step(self) -> float:
        """One step of as many tokens as the run takes, a straight line where they are too many."""
        samples = self.calibration.samples
        if samples is None:
            return 0.0
        self.block.train()
        whole = self.clock.settled(lambda: self._train(samples, self.batch))
        tokens = self.batch * self.sizes.tokens
        if self.asked <= tokens or self.batch == 1:
            return whole * max(1.0, self.asked / tokens)
        half = self.batch // 2
        less = self.clock.settled(lambda: self._train(samples, half))
        return whole + (whole - less) * (self.asked - tokens) / (tokens - half * self.sizes.tokens)

    def _train(self, samples: BlockSamples, count: int) -> None:
        optimizer = self.block.configure_optimizers()
        batch = samples.batch(range(count))
        on_device = BlockBatch(*(part.to(self.device) for part in batch))
        loss = self.block.training_step(on_device, 0)
        assert loss is not None
        loss.backward()
        self.block.drop_unusable_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()

    def _restore(self) -> None:
        block = self.directory.read_block(0, self.decoder).to(self.device)
        with torch.no_grad():
            run_block(block, self.streams.full_precision[0:1], self.context, self.device)
