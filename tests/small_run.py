"""A small run through the command line, in a process of its own, forked or started anew.

The model is random, a few blocks of 64 channels, with the embedded model's tokenizer and the text
that Python carries: what is tested is how a run behaves, not how good its numbers are.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from duquant.quickstart import MODEL_DIRECTORY
from tests.assets import REPOSITORY
from tests.forked_process import ForkedProcess, run_forked
from tests.tiny_models import write_tiny_model

VOCABULARY = 1024


def write_small_model(directory: Path, *, blocks: int = 3) -> Path:
    """A random LLaMA with a real tokenizer."""
    options = {"model_type": "llama", "vocab_size": VOCABULARY, "num_hidden_layers": blocks}
    write_tiny_model(directory, options)
    for file in MODEL_DIRECTORY.glob("tokenizer*"):
        shutil.copy(file, directory)
    return directory


def arguments(model: Path | str, output: Path, *extra: str) -> list[str]:
    """Options of a run of a few seconds."""
    return [
        "--model.pretrained", str(model),
        "--model.rotation.block_size", "16",
        "--model.rotation.max_steps", "8",
        "--model.lwc.epochs", "4",
        "--model.lwc.batch_size", "2",
        "--model.reuse_full_precision", "false",
        "--data.calibration", "python_topics",
        "--data.validation", "{topics: python_topics}",
        "--data.num_samples", "8",
        "--data.sequence_length", "48",
        "--data.validation_windows", "4",
        "--output_dir", str(output),
        *extra,
    ]  # fmt: skip


def start(*arguments: str, **environment: str) -> ForkedProcess:
    """Start the command line in a process that has its imports behind it."""
    command = [str(REPOSITORY / "cli.py"), *arguments]
    return ForkedProcess(command, {**one_thread(), **environment})


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line to its end, in such a process."""
    return run_forked([str(REPOSITORY / "cli.py"), *arguments], {**one_thread(), **environment})


def run_anew(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The same as a user's shell does it: with an interpreter of its own."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "cli.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=one_thread(),
    )


def one_thread() -> dict[str, str]:
    """Variables of such a process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def stored_tensors(output: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's quantized model."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted((output / "model").glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors
