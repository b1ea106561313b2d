"""Scenarios on a device without float64, as MPS is."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import duquant
from duquant.check import agrees, by_transformers, largest_differences
from duquant.config import FormatConfig, SmoothingConfig
from duquant.evaluation.perplexity import model_losses
from duquant.export.first_tokens import read_first_tokens
from tests.emulated.dtypes import without
from tests.emulated.scenarios import DEVICE, RECIPES, Facts, refusal, scenario, sources

PLAIN = {**RECIPES["nothing_learns"], "smoothing": SmoothingConfig(subtract_mean=True)}
NARROW = {"integer": PLAIN, "nvfp4": {**PLAIN, "weights": FormatConfig("nvfp4")}}
"""K and V have biases of their own, which a packed cache adds when it is read."""


@scenario
def without_float64(folder: Path) -> Facts:
    """Models that the CPU has calibrated are loaded, checked, measured, and write."""
    source, text = sources(folder)
    words, facts, wide = text.read_text(encoding="utf-8"), {}, torch.float64
    for name, recipe in NARROW.items():
        directory = duquant.quantize(
            source, words, duquant.Recipe(**recipe),
            output_dir=folder / name, num_samples=4, sequence_length=16,
        )  # fmt: skip
        with without(wide):
            facts[name] = _used(directory)
    numbers = torch.ones(2)
    with without(wide):
        there = numbers.to(DEVICE)
        refused = {
            "made": refusal(lambda: torch.zeros(2, dtype=wide, device=DEVICE)),
            "moved": refusal(lambda: numbers.double().to(DEVICE)),
            "converted": refusal(there.double),
            "calibration": refusal(
                lambda: duquant.quantize(
                    source, words, duquant.Recipe(**PLAIN), output_dir=folder / "there",
                    num_samples=4, sequence_length=16, device=DEVICE,
                )
            ),
        }  # fmt: skip
    return {"models": facts, "refused": refused}


def _used(directory: Path) -> Facts:
    """What the reference computes there, beside what it computes on the CPU."""
    ids, written, losses = torch.arange(3, 19).view(2, 8), [], []
    for place in (DEVICE, "cpu"):
        model = AutoModelForCausalLM.from_pretrained(directory, device_map={"": place})
        duquant.set_execution(model, "reference")
        given = ids.to(place)

        def write(model: torch.nn.Module = model, given: Tensor = given, **cache: object) -> Tensor:
            tokens: Tensor = model.generate(  # type: ignore[operator]
                given, attention_mask=torch.ones_like(given), do_sample=False, eos_token_id=None,
                max_new_tokens=5, **cache,
            )  # fmt: skip
            return tokens.cpu()

        written += [write(), write(past_key_values=duquant.PackedCache(model))]
        losses.append(model_losses(model, ids))
    stored = read_first_tokens(directory)
    found = by_transformers(directory, stored, "reference", DEVICE)
    return {
        "tokens": [torch.equal(written[0], each) for each in written],
        "losses": float((losses[0] - losses[1]).abs().max()),
        "agrees": agrees(largest_differences(stored, found)),
    }
