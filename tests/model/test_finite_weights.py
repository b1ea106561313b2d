"""Weights that are not finite are found before any work, wherever they are."""

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import cli
import duquant
from duquant.model.checkpoint import WEIGHTS, Checkpoint
from duquant.model.finite_weights import require_finite_weights
from tests.block_by_block import small_recipe
from tests.in_process import LIGHTNING_WARNINGS, write_text
from tests.small_run import arguments, write_small_model
from tests.tiny_models import FAMILIES, tiny_model, write_tiny_model

pytestmark = LIGHTNING_WARNINGS
BAD = [float("nan"), float("inf"), -float("inf")]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def plant(file: Path, name: str, value: float, count: int, seed: int) -> None:
    tensors = load_file(file)
    flat = tensors[name].view(-1)
    for place in random.Random(seed).sample(range(flat.numel()), count):
        flat[place] = value
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llama-biases", "qwen3"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tensor_is_looked_at(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_model(FAMILIES[family]).to(dtype).save_pretrained(tmp_path, max_shard_size="60KB")
    checkpoint = Checkpoint(tmp_path)
    require_finite_weights(checkpoint, dtype)
    for seed, (name, file) in enumerate(checkpoint.files.items()):
        healthy = file.read_bytes()
        count = 1 + seed % 3
        plant(file, name, BAD[seed % len(BAD)], count, seed)
        with pytest.raises(ValueError, match=f"{count} of .* values of {name} are not fin") as told:
            require_finite_weights(checkpoint, dtype)
        assert str(file) in str(told.value)
        file.write_bytes(healthy)
    require_finite_weights(checkpoint, dtype)


@pytest.mark.parametrize("value", [65520.0, -1e30])
def test_a_weight_that_the_dtype_cannot_hold_is_named(value: float, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, FAMILIES["llama"])
    name = "model.layers.1.mlp.up_proj.weight"
    plant(tmp_path / WEIGHTS, name, value, 2, 0)
    checkpoint = Checkpoint(tmp_path)
    require_finite_weights(checkpoint, torch.float32)
    with pytest.raises(ValueError, match=f"2 of 6144 values of {name} are beyond 65504.*bfloat16"):
        require_finite_weights(checkpoint, torch.float16)


# Before any work: a row of the embeddings that no text reaches.


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    source = write_small_model(tmp_path / "source", blocks=1)
    tensors = load_file(source / WEIGHTS)
    tensors["model.embed_tokens.weight"][1023, 5] = torch.nan
    save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
    return source


@pytest.fixture
def refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    def command(*options: object) -> None:
        monkeypatch.setattr(sys, "argv", ["cli.py", *map(str, options)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert "model.safetensors: 1 of 65536 values of model.embed_tokens.weight" in error

    return command


def test_fit_refuses_it(damaged: Path, tmp_path: Path, refuse: Callable[..., None]) -> None:
    text, output = str(write_text(tmp_path / "text.txt")), tmp_path / "run"
    corpora = ("--data.calibration", text, "--data.validation", f"{{text: {text}}}")
    refuse("fit", *arguments(damaged, output, *corpora))
    assert not output.exists()


def test_evaluate_refuses_it(damaged: Path, tmp_path: Path, refuse: Callable[..., None]) -> None:
    text, output = write_text(tmp_path / "text.txt"), tmp_path / "out"
    windows = ("--sequence_length", 32, "--perplexity_windows", 2, "--output_dir", output)
    refuse("evaluate", "--model", damaged, "--perplexity", f"{{text: {text}}}", *windows)
    assert not list(output.rglob("*.json"))


def test_quantize_refuses_it(damaged: Path, tmp_path: Path) -> None:
    output, sizes = tmp_path / "model", {"num_samples": 2, "sequence_length": 16}
    text = write_text(tmp_path / "text.txt").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"embed_tokens\.weight are not finite"):
        duquant.quantize(damaged, text, small_recipe(), output_dir=output, **sizes)
    assert not output.exists()
