"""Recipes that together hold every pair of options' values: a covering array of strength two.

Faults of combinations are nearly always faults of two options (Kuhn et al. 2004), so a dozen
recipes stand for the thousands that could be written.
"""

import itertools
from collections.abc import Iterator
from dataclasses import fields
from functools import reduce
from random import Random
from typing import Any

from duquant.config import Recipe

Sections = dict[str, Any]
Choice = tuple[str, str]
"""An option of :data:`OPTIONS` and the name of its value."""

CLIPS = {"lwc": {"epochs": 2, "batch_size": 2, "learning_rate": 0.1}}
ALL_CLIPS = {**CLIPS, "training": {"activation_clips": True}}
OPTIONS: dict[str, dict[str, Sections]] = {
    "learned": {
        "nothing": {"lwc": {"epochs": 0}},
        "weight clips": CLIPS,
        "all clips": ALL_CLIPS,
        "transforms": {**ALL_CLIPS, "rotation": {"transform": "affine_permute"}},
    },
    "rounding": {
        "nearest": {},
        "gptq": {"rounding": {"method": "gptq"}},
        "gptq, natural order": {"rounding": {"method": "gptq", "order": "natural"}},
    },
    "formats": {
        "asymmetric": {},
        "symmetric groups": {"symmetric": True, "group_size": 16},
        "mxfp4 activations": {"activations": {"format": "mxfp4"}},
    },
    "attention": {
        "4 bits": {},
        "K and V 4 bits": {"query_bits": 16},
        "16 bits": {name: {"format": "unquantized"} for name in ("queries", "keys", "values")},
    },
    "search": {
        "greedy, shared": {},
        "greedy, per block": {"rotation": {"scope": "per_block"}},
        "hadamard": {"rotation": {"selector": "hadamard"}},
    },
    "inputs": {
        "quantized": {},
        "full precision": {"training": {"inputs": "full_precision"}},
        "augmented": {"lwc": {"augmented_loss": True}},
    },
    "loss": {"mse": {}, "relative": {"training": {"loss": "relative"}}},
    "scales": {"first": {}, "all": {"smoothing": {"weights": "all"}}},
    "attention_output": {
        "key_value_channel": {},
        "query_channel": {"smoothing": {"attention_output": "query_channel"}},
    },
    "means": {"kept": {}, "subtracted": {"smoothing": {"subtract_mean": True}}},
    "values": {"as they are": {}, "rotated": {"rotation": {"rotate_values": True}}},
    "activation_clips": {"fixed": {}, "searched": {"clipping": {"activations": "search"}}},
    "distillation": {"off": {}, "on": {"distillation": {"epochs": 1, "batch_size": 2}}},
}
"""Sections of a recipe by option and value; sections that several values set are joined."""


def covering_choices(
    options: dict[str, dict[str, Sections]], attempts: int = 20
) -> list[tuple[Choice, ...]]:
    """Few rows, one value of every option in each, that hold every pair of values of two options.

    Greedy, in many random orders; the attempt with fewest rows is taken, the same every time.
    """
    return min((_covering(options, Random(seed)) for seed in range(attempts)), key=len)


def _covering(options: dict[str, dict[str, Sections]], random: Random) -> list[tuple[Choice, ...]]:
    """Every row begins with a missing pair and takes the values that add most missing pairs."""
    missing = set(_pairs([[(option, v) for v in values] for option, values in options.items()]))
    rows = []
    while missing:
        row = dict(min(missing))
        for option in random.sample(sorted(options), len(options)):
            if option not in row:
                values = random.sample(sorted(options[option]), len(options[option]))
                gains = {v: _new_pairs((option, v), row, missing) for v in values}
                row[option] = max(gains, key=lambda value: gains[value])
        missing -= set(_pairs([[choice] for choice in row.items()]))
        rows.append(tuple((option, row[option]) for option in options))
    return rows


def recipe_options(choices: tuple[Choice, ...]) -> dict[str, Any]:
    """A recipe's sections, as ``LanguageModel`` takes them, for models of 64 channels."""
    small: Sections = {"rotation": {"block_size": 16, "max_steps": 4}}
    sections = reduce(_joined, (OPTIONS[option][value] for option, value in choices), small)
    recipe = Recipe.from_dict(sections)
    return {option.name: getattr(recipe, option.name) for option in fields(recipe)}


def _joined(one: Sections, other: Sections) -> Sections:
    merged = {**one, **other}
    for name in one.keys() & other.keys():
        if isinstance(one[name], dict):
            merged[name] = {**one[name], **other[name]}
    return merged


def _pairs(groups: list[list[Choice]]) -> Iterator[tuple[Choice, Choice]]:
    for one, other in itertools.combinations(groups, 2):
        yield from (_ordered(*pair) for pair in itertools.product(one, other))


def _ordered(one: Choice, other: Choice) -> tuple[Choice, Choice]:
    return (one, other) if one < other else (other, one)


def _new_pairs(choice: Choice, row: dict[str, str], missing: set[tuple[Choice, Choice]]) -> int:
    return sum(_ordered(choice, held) in missing for held in row.items())
