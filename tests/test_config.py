"""The recipe: what it refuses, what it fills in, and that it survives being written down."""

import json
import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duquant.config import (
    ClippingConfig,
    LWCConfig,
    Recipe,
    RotationConfig,
    SmoothingConfig,
)
from duquant.modules.variants import round_to_nearest

NO_LWC = LWCConfig(epochs=0)
SECTIONS = {
    "smoothing": SmoothingConfig,
    "rotation": RotationConfig,
    "clipping": ClippingConfig,
    "lwc": LWCConfig,
}


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("smoothing", "alpha", -0.1),
        ("smoothing", "alpha", 1.1),
        ("smoothing", "alpha", math.nan),
        ("smoothing", "weights", "second"),
        ("smoothing", "attention_output", "channel"),
        ("rotation", "block_size", 1),
        ("rotation", "block_size", -16),
        ("rotation", "max_steps", 0),
        ("rotation", "permutation_times", -1),
        ("rotation", "selector", "zigzag"),
        ("rotation", "scope", "per-block"),
        ("clipping", "weight_ratio", 0.0),
        ("clipping", "weight_ratio", 1.01),
        ("clipping", "activation_ratio", -0.5),
        ("clipping", "activation_ratio", 2.0),
        ("clipping", "activation_ratio", math.nan),
        ("lwc", "epochs", -1),
        ("lwc", "learning_rate", 0.0),
        ("lwc", "learning_rate", -1e-3),
        ("lwc", "learning_rate", math.nan),
        ("lwc", "batch_size", 0),
        ("lwc", "initialization", "zero"),
        ("lwc", "schedule", "linear"),
    ],
)
def test_a_section_refuses_and_names_option_and_value(
    section: str, option: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=rf"^{section}\.{option} is ") as error:
        SECTIONS[section](**{option: value})
    assert str(value) in str(error.value)
    with pytest.raises(ValueError, match=rf"^{section}\.{option} is "):
        Recipe.from_dict({section: {option: value}})


@pytest.mark.parametrize(
    ("section", "options"),
    [
        ("smoothing", {"alpha": 0.0}),
        ("smoothing", {"alpha": 1.0}),
        ("rotation", {"block_size": 2, "max_steps": 1, "permutation_times": 0}),
        ("rotation", {"block_size": 64, "selector": "hadamard"}),
        ("rotation", {"block_size": 96, "selector": "outlier"}),
        ("clipping", {"weight_ratio": 1.0, "activation_ratio": 1.0}),
        ("lwc", {"epochs": 0, "batch_size": 1}),
        ("lwc", {"initialization": "constant", "schedule": "constant"}),
    ],
)
def test_the_limits_themselves_are_allowed(section: str, options: dict[str, Any]) -> None:
    config = SECTIONS[section](**options)
    assert {option: getattr(config, option) for option in options} == options


@pytest.mark.parametrize("block_size", [3, 12, 96])
def test_hadamard_needs_a_power_of_two(block_size: int) -> None:
    with pytest.raises(ValueError, match=f"block_size is {block_size}; the hadamard selector"):
        RotationConfig(block_size=block_size, selector="hadamard")


@pytest.mark.parametrize(
    "option", ["weight_bits", "activation_bits", "query_bits", "key_bits", "value_bits"]
)
@pytest.mark.parametrize("bits", [-4, 0, 1, 17])
def test_bits_lie_between_2_and_16(option: str, bits: int) -> None:
    with pytest.raises(ValueError, match=rf"^{option} is {bits}; it must be 2 to 16"):
        Recipe(**{option: bits})
    assert getattr(Recipe(**{option: 2}), option) == 2
    assert getattr(Recipe(**{option: 16}), option) == 16


def test_group_size_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="group_size is 0; it must be at least 1"):
        Recipe(group_size=0)


def test_a_fixed_ratio_and_lwc_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"weight_ratio is 0\.8 while LWC .* 20 epochs"):
        Recipe(clipping=ClippingConfig(weight_ratio=0.8))
    assert Recipe(clipping=ClippingConfig(weight_ratio=0.7), lwc=NO_LWC).weight_ratio == 0.7


def test_defaults_in_force_follow_lwc() -> None:
    assert Recipe().alpha == 0.5
    assert Recipe().has_lwc
    assert Recipe(lwc=NO_LWC).alpha == 0.6
    assert Recipe(lwc=NO_LWC).weight_ratio == 0.8
    assert not Recipe(lwc=NO_LWC).has_lwc
    assert not Recipe(weight_bits=16).has_lwc
    assert Recipe(smoothing=SmoothingConfig(alpha=0.0)).alpha == 0.0
    assert Recipe(smoothing=SmoothingConfig(alpha=0.7), lwc=NO_LWC).alpha == 0.7


def test_attention_bits_follow_the_activations_unless_given() -> None:
    assert Recipe(activation_bits=6).attention_bits == (6, 6, 6)
    recipe = Recipe(activation_bits=6, query_bits=16, value_bits=4)
    assert recipe.attention_bits == (16, 6, 4)


def test_recipes_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Recipe().weight_bits = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        RotationConfig().selector = "none"  # type: ignore[misc]


bits = st.integers(2, 16)
maybe_bits = st.none() | bits
recipes = st.builds(
    Recipe,
    weight_bits=bits,
    activation_bits=bits,
    query_bits=maybe_bits,
    key_bits=maybe_bits,
    value_bits=maybe_bits,
    symmetric=st.booleans(),
    group_size=st.none() | st.integers(1, 256),
    smoothing=st.builds(SmoothingConfig, alpha=st.none() | st.floats(0, 1)),
    rotation=st.builds(
        RotationConfig,
        block_size=st.sampled_from([2, 16, 128]),
        max_steps=st.integers(1, 1024),
        permutation_times=st.integers(0, 3),
    ),
    clipping=st.builds(ClippingConfig, activation_ratio=st.floats(0.1, 1)),
    lwc=st.builds(
        LWCConfig,
        epochs=st.integers(0, 40),
        learning_rate=st.floats(1e-6, 1),
        batch_size=st.integers(1, 64),
    ),
)


@given(recipes)
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_dictionary_names_every_option() -> None:
    values = Recipe().to_dict()
    assert list(values) == [option.name for option in fields(Recipe)]
    for section, kind in SECTIONS.items():
        assert list(values[section]) == [option.name for option in fields(kind)]


def test_missing_options_take_their_defaults() -> None:
    assert Recipe.from_dict({}) == Recipe()
    values = {"weight_bits": 3, "lwc": {"epochs": 2}}
    assert Recipe.from_dict(values) == Recipe(weight_bits=3, lwc=LWCConfig(epochs=2))


@pytest.mark.parametrize(
    ("values", "named"),
    [({"bits": 4}, "bits"), ({"rotation": {"blocksize": 8}}, "blocksize"), ({"lwc": 20}, "LWC")],
)
def test_a_key_that_is_no_option_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"not a recipe: .*{named}"):
        Recipe.from_dict(values)


@given(recipes)
def test_the_baseline_keeps_bits_and_groups_only(recipe: Recipe) -> None:
    plain = round_to_nearest(recipe)
    for option in ("weight_bits", "activation_bits", "attention_bits", "symmetric", "group_size"):
        assert getattr(plain, option) == getattr(recipe, option)
    assert not plain.smoothing.enabled
    assert plain.rotation.selector == "none"
    assert plain.weight_ratio == plain.clipping.activation_ratio == 1.0
    assert not plain.has_lwc
