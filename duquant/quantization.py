"""Quantize from Python, without a command line: texts in, model directory out.

The steps and the numbers are those of ``python cli.py fit``; what the command adds is a run
directory: checkpoints to resume from, TensorBoard, perplexities, reports. For a night's work on a
large model use the command.
"""

import logging
import random
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from duquant.calibration import BlockCalibration, open_streams
from duquant.compute_device import calibration_device
from duquant.config import DistillationConfig, LWCConfig, Recipe
from duquant.data.batches import batch_loader
from duquant.data.streams import CPU, BlockSamples, Streams, StreamSizes
from duquant.data.windows import draw_windows
from duquant.export.float_tensors import float_shapes
from duquant.export.model_directory import ModelDirectory
from duquant.model.decoder import BlockContext, Decoder
from duquant.model.finite_weights import require_finite_weights
from duquant.model.structure import linear_shapes, require_fitting_widths
from duquant.model.tokenizer import load_tokenizer, require_matching_vocabulary
from duquant.modules.block import QuantBlock, block_generator
from duquant.modules.distillation import Distillation
from duquant.modules.learner import Learner
from duquant.ops.device_memory import free_device_bytes
from duquant.preflight.job import Job
from duquant.preflight.placement import holds_scores, require_device_room, with_streams_placed
from duquant.run_lock import LOCK_FILE, RunLock
from duquant.user_paths import user_path
from duquant.write_behind import writing_behind

DTYPES = ("float32", "bfloat16", "float16")


def quantize(
    model: Any,
    texts: str | Sequence[str],
    recipe: Recipe | None = None,
    *,
    output_dir: str | Path,
    num_samples: int = 128,
    sequence_length: int = 2048,
    seed: int = 2,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    gradient_checkpointing: bool = True,
    on_block: Callable[[int, int], None] | None = None,
) -> Path:
    """Calibrate a model on texts and write it quantized.

    Args:
        model: a model directory, a hub id, or a transformers model whose ``name_or_path`` leads to
            its tokenizer.
        texts: calibration text; several are joined by blank lines.
        recipe: how to quantize (default: W4A4 DuQuant+LWC).
        output_dir: the model directory to write; it must not exist or be empty.
        num_samples: calibration windows drawn from the text.
        sequence_length: tokens of a window.
        seed: draws windows and random rotations.
        dtype: dtype in which the model is read and run: float32, bfloat16 or float16.
        device: where to compute, blocks and trainer alike; "cuda" is the current GPU.
        gradient_checkpointing: in distillation, compute blocks again instead of holding them all.
        on_block: told the index of every finished block and their number, for progress; a recipe's
            distillation comes after the last.

    Returns:
        ``output_dir``, ready for ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        ValueError: if model, texts, recipe, directory or device do not fit, with the remedy.
    """
    recipe, output, place = recipe or Recipe(), user_path(output_dir), calibration_device(device)
    _require_empty(output)
    with ExitStack() as stack:
        source, name = str(model), None
        if not isinstance(model, (str, Path)):
            name, tokenizer = model.name_or_path, _find_tokenizer(model)
            source = stack.enter_context(tempfile.TemporaryDirectory())
            model.save_pretrained(source)
            tokenizer.save_pretrained(source)
        decoder = Decoder(source, _dtype(dtype))
        require_fitting_widths(decoder.meta_block(), recipe)
        tokenizer = load_tokenizer(decoder.directory)
        windows = _windows(texts, tokenizer, num_samples, sequence_length, seed)
        decoder.require_windows(windows, tokenizer)
        require_matching_vocabulary(tokenizer, int(decoder.config.vocab_size), name or source)
        job = _placed_job(decoder, recipe, windows, place, gradient_checkpointing)
        require_finite_weights(decoder.checkpoint, decoder.dtype)
        stack.enter_context(RunLock(output)).acquire()
        _require_empty(output)  # nobody else writes into it any more
        directory = ModelDirectory(output, recipe)
        _calibrate(job, directory, windows, seed, place, on_block)
        directory.complete(decoder, name)
    return output


def _windows(
    texts: str | Sequence[str], tokenizer: Any, num_samples: int, length: int, seed: int
) -> Tensor:
    whole = texts if isinstance(texts, str) else "\n\n".join(texts)
    ids = tokenizer(whole, add_special_tokens=False).input_ids
    tokens = torch.tensor(ids, device="cpu")
    return draw_windows(tokens, num_samples, length, random.Random(seed))


def _calibrate(
    job: Job,
    directory: ModelDirectory,
    windows: Tensor,
    seed: int,
    device: torch.device,
    on_block: Callable[[int, int], None] | None,
) -> None:
    decoder, recipe, sizes = job.decoder, job.recipe, job.streams
    shapes, place = linear_shapes(decoder.meta_block()), device if job.streams_on_gpu else CPU
    streams = Streams.draft(sizes, place, at_start=True)
    open_streams(decoder, windows, streams, device)
    contexts = decoder.contexts(windows.shape[1], device)
    with writing_behind() as writer:
        for index, context in enumerate(contexts):
            block, generator = QuantBlock(shapes, recipe, index), block_generator(seed, index)
            draft = Streams.draft(sizes, place)
            calibration = BlockCalibration(block, streams, draft, context, device)
            calibration.enter(decoder.load_block(index), generator)
            if calibration.samples is not None:
                _train(block, calibration.samples, recipe.lwc, device)
            writer.wait()  # one finished block is held at most
            write = partial(directory.write_block_behind, index, writer=writer)
            streams = calibration.finish(write)
            if calibration.error.complaint:
                name = f"block {index + 1}/{decoder.num_blocks}"
                logging.getLogger(__name__).warning("%s: %s", name, calibration.error.complaint)
            if on_block is not None:
                on_block(index, decoder.num_blocks)
    if recipe.distillation.epochs:
        samples = BlockSamples(windows, streams.full_precision)
        _distil(decoder, directory, samples, contexts, device, job.gradient_checkpointing)


def _placed_job(
    decoder: Decoder,
    recipe: Recipe,
    windows: Tensor,
    device: torch.device,
    checkpointing: bool,
) -> Job:
    """What is to be done, with its streams beside the blocks if there is room for both.

    Raises:
        ValueError: if there is none for the blocks.
    """
    free, (count, tokens) = free_device_bytes(device), windows.shape
    job = Job(
        decoder,
        recipe,
        StreamSizes.of(recipe, count, tokens, decoder.hidden_size, decoder.dtype),
        streams_in_memory=True,
        batch_size=recipe.lwc.batch_size,
        windows=(),
        validation_chunk=1,
        on_gpu=free is not None,
        gradient_checkpointing=checkpointing,
        holds_scores=free is not None and holds_scores(decoder, tokens, device),
    )
    placed = with_streams_placed(job, free)
    require_device_room(placed, free, device, in_python=True)
    return placed


def _distil(
    decoder: Decoder,
    directory: ModelDirectory,
    samples: BlockSamples,
    contexts: Sequence[BlockContext],
    device: torch.device,
    checkpointing: bool,
) -> None:
    """Let the finished model learn the original's predictions, and store it once more."""
    blocks, recipe = range(decoder.num_blocks), directory.recipe
    shapes = [float_shapes(decoder.meta_block(index), recipe) for index in blocks]
    distillation = Distillation(shapes, recipe, gradient_checkpointing=checkpointing).to(device)
    distillation.enter(directory, decoder, contexts)
    _train(distillation, samples, recipe.distillation, device)
    for index in blocks:
        directory.replace_tensors(index, distillation.stored_values(index))
    decoder.release()


def _require_empty(output: Path) -> None:
    """Refuse a directory that holds anything but a lock."""
    is_used = output.is_dir() and any(file.name != LOCK_FILE for file in output.iterdir())
    if is_used or (output.exists() and not output.is_dir()):
        raise ValueError(f"{output} is not an empty directory; choose another output_dir")


def _find_tokenizer(model: Any) -> Any:
    directory = Path(model.name_or_path)
    if not (model.name_or_path and directory.is_dir()):
        raise ValueError(
            f"the model's name_or_path is {model.name_or_path!r}, no directory to take its "
            f"tokenizer from; give the model's directory or hub id instead of the model"
        )
    return load_tokenizer(directory)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; it must be one of {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _train(
    learner: Learner,
    samples: BlockSamples,
    settings: LWCConfig | DistillationConfig,
    device: torch.device,
) -> None:
    """Let a block, or the whole model, learn under a Trainer of its own."""
    loader = batch_loader(samples, settings.batch_size, device)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
        trainer = Trainer(
            max_epochs=settings.epochs,
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with torch.device("cpu"):  # where Lightning and AdamW expect what they count in
            trainer.fit(learner, loader)
    learner.to(device)
