"""Makes the files of this folder; run it with the release of commit 8fa0095 on the path.

    PYTHONPATH=<checkout of 8fa0095> python tests/release_0_1_0/make.py <an empty folder>

It calibrates one random model of two blocks twice, once to its end and once until an interruption
in the middle of the second block, and writes logits of the finished model.
"""

import contextlib
import filecmp
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import cli
import duquant

TEXT = "the quick brown fox jumps over the lazy dog while seven zebras graze near a quiet pond. "
STOP_BEFORE_EPOCH = 6
"""Blocks have four epochs: two of the second block are done."""
READ_AGAIN = (
    "blocks/block_00000.json",
    "checkpoints/last.ckpt",
    "streams/block_00001.safetensors",
    "run.json",
)
"""What a resumed run needs of its directory; its first block is the finished run's as well."""


def write_source(directory: Path) -> None:
    """A LLaMA of random bfloat16 weights with outliers, and a tokenizer of single letters."""
    letters = sorted(set(TEXT))
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            values = 1 + 0.2 * values
            values[::11] *= 10
        else:
            values *= parameter.shape[-1] ** -0.5
        parameter.data.copy_(values)
    model.bfloat16().save_pretrained(directory)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(directory)


def describe_arithmetic() -> dict[str, str]:
    """What the last bits of a sum of floats depend on."""
    return {"torch": torch.__version__, "vectors": torch.backends.cpu.get_cpu_capability()}


def fit(directory: Path, output: Path) -> None:
    """Run ``cli.py fit`` in this process."""
    sys.argv = ["cli.py", "fit", *options(directory, output)]
    cli.main()


def options(directory: Path, output: Path) -> list[str]:
    """Options of both runs."""
    return [
        "--model.pretrained", str(directory / "source"),
        "--model.dtype", "float32",
        "--model.rotation.block_size", "16",
        "--model.rotation.max_steps", "8",
        "--model.lwc.epochs", "4",
        "--model.lwc.batch_size", "2",
        "--data.calibration", str(directory / "text.txt"),
        "--data.validation", f"{{text: {directory}/text.txt}}",
        "--data.validation_windows", "2",
        "--data.num_samples", "4",
        "--data.sequence_length", "16",
        "--output_dir", str(output),
    ]  # fmt: skip


class Interruption(Callback):
    """Stops the run as Ctrl-C would."""

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop in the middle of a block."""
        if trainer.current_epoch == STOP_BEFORE_EPOCH:
            raise KeyboardInterrupt


def main(directory: Path) -> None:
    """Make all of it."""
    directory.mkdir(parents=True, exist_ok=True)
    write_source(directory / "source")
    (directory / "text.txt").write_text(TEXT * 4)
    fit(directory, directory / "finished")
    shutil.move(directory / "finished" / "model", directory / "model")
    shutil.rmtree(directory / "finished")
    for file in ("README.md", "tokenizer.json", "tokenizer_config.json"):
        (directory / "model" / file).unlink()
    ids = torch.arange(3, 27).reshape(2, 12)
    model: Any = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32)
    duquant.set_execution(model, "reference")
    with torch.no_grad():
        logits = {"ids": ids, "logits": model(ids).logits}
    save_file(logits, directory / "logits.safetensors", describe_arithmetic())
    chosen = cli.default_callbacks
    cli.default_callbacks = lambda *a, **k: [*chosen(*a, **k), Interruption()]
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        fit(directory, directory / "whole_run")
    for name in READ_AGAIN:
        (directory / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(directory / "whole_run" / name, directory / "run" / name)
    first = "model-block-00000.safetensors"
    assert filecmp.cmp(
        directory / "whole_run" / "model" / first, directory / "model" / first, False
    )
    shutil.rmtree(directory / "whole_run")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
