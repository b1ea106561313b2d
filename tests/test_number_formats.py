"""Every number format, rounding and trained part from calibration to a loaded model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import duquant
from duquant.config import (
    ClippingConfig,
    FormatConfig,
    LWCConfig,
    Recipe,
    RotationConfig,
    RoundingConfig,
    SmoothingConfig,
    TrainingConfig,
)
from tests.in_process import LIGHTNING_WARNINGS
from tests.small_run import write_small_model
from tests.tiny_models import token_ids

pytestmark = LIGHTNING_WARNINGS
PLAIN = Recipe(rotation=RotationConfig(block_size=16, max_steps=4), lwc=LWCConfig(epochs=0))
LEARNED = replace(PLAIN, lwc=LWCConfig(epochs=1))
FP4 = {name: FormatConfig(name) for name in ("mxfp4", "nvfp4")}
GPTQ = RoundingConfig("gptq")
MEANS = SmoothingConfig(weights="all", subtract_mean=True)
SEARCHED = ClippingConfig(activations="search")
TRAINED = replace(PLAIN.rotation, transform="affine_permute")
RECIPES: dict[str, Recipe] = {
    **{n: replace(PLAIN, weights=form, activations=form) for n, form in FP4.items()},
    **{f"{n}, searched": replace(LEARNED, weights=f, activations=f) for n, f in FP4.items()},
    "nvfp4 activations alone": replace(PLAIN, weight_bits=16, activations=FP4["nvfp4"]),
    "mxfp4 weights, integer activations": replace(LEARNED, weights=FP4["mxfp4"]),
    "W4 symmetric, A4 asymmetric": replace(LEARNED, weights=FormatConfig(symmetric=True)),
    "A4 in groups": replace(PLAIN, activations=FormatConfig(group_size=16)),
    "W4A8": replace(PLAIN, activations=FormatConfig(bits=8)),
    "gptq": replace(PLAIN, rounding=GPTQ),
    "gptq behind LWC, in groups": replace(LEARNED, rounding=GPTQ, group_size=16),
    "means subtracted": replace(PLAIN, smoothing=MEANS),
    "clips of activations searched": replace(PLAIN, clipping=SEARCHED),
    "everything without training": replace(
        PLAIN,
        rotation=replace(PLAIN.rotation, rotate_values=True),
        smoothing=MEANS,
        clipping=SEARCHED,
        rounding=GPTQ,
    ),
    "values rotated": replace(PLAIN, rotation=replace(PLAIN.rotation, rotate_values=True)),
    "learned clips of activations": replace(LEARNED, training=TrainingConfig(True)),
    "trained transforms": replace(LEARNED, rotation=TRAINED),
    "everything learned": replace(
        LEARNED,
        rotation=replace(TRAINED, rotate_values=True),
        clipping=SEARCHED,
        smoothing=MEANS,
        training=TrainingConfig(True, 0.01, "full_precision", "relative"),
        rounding=GPTQ,
    ),
    "gptq to mxfp4": replace(PLAIN, weights=FP4["mxfp4"], rounding=GPTQ),
}
IDS = token_ids(1, 12, seed=4) % 60


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("source"), blocks=1)


@pytest.fixture(scope="module", params=RECIPES)
def directory(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Path]:
    recipe, target = RECIPES[request.param], tmp_path_factory.mktemp("model") / "model"
    text = " ".join(f"word{n % 13} and {n % 7}." for n in range(800))
    duquant.quantize(
        str(source), text, recipe, output_dir=target, num_samples=2, sequence_length=16
    )
    return recipe, target


def load(path: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, **options)


@torch.no_grad()
def logits(model: Any, **options: Any) -> torch.Tensor:
    result: torch.Tensor = model(IDS, **options).logits
    return result


def test_it_loads_is_saved_and_caches(directory: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, path = directory
    model = load(path)
    expected = logits(model)
    assert expected.isfinite().all()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), expected)
    if recipe.formats.keys.bits < 16:
        cached = logits(model, past_key_values=duquant.PackedCache(model), use_cache=True)
        assert torch.equal(cached, expected)


def test_integers_compute_the_same(directory: tuple[Recipe, Path]) -> None:
    recipe, path = directory
    weights, activations = recipe.formats[:2]
    if {weights.name, activations.name} != {"integer"} or activations.group_size:
        pytest.skip("computed by the reference alone")
    model = load(path)
    duquant.set_execution(model, "reference")
    expected = logits(model)
    duquant.set_execution(model, "integer")
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)


def test_a_token_does_not_depend_on_those_behind_it(directory: tuple[Recipe, Path]) -> None:
    """Also where a format has one scale for the whole tensor: it is calibrated."""
    model = load(directory[1])
    with torch.no_grad():
        first = model(IDS[:, :5]).logits
    torch.testing.assert_close(logits(model)[:, :5], first, rtol=1e-4, atol=1e-4)


def test_quantization_is_real(directory: tuple[Recipe, Path], source: Path) -> None:
    """It changes the logits, and not beyond recognition."""
    original = load(source, dtype=torch.float32)
    error = (logits(load(directory[1])) - logits(original)).norm() / logits(original).norm()
    assert 1e-3 < error < 1


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_single_window_of_few_tokens_calibrates(
    source: Path, tmp_path: Path, tokens: int
) -> None:
    """Means then are the tokens themselves, and nothing is left to search or to round by."""
    target, text = tmp_path / "model", "one word and another. " * 50
    recipe = RECIPES["everything learned"]
    duquant.quantize(
        str(source), text, recipe, output_dir=target, num_samples=1, sequence_length=tokens
    )
    assert logits(load(target)).isfinite().all()
