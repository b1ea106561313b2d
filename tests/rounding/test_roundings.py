"""What every way of rounding a weight has to do; and GPTQ's promise beside rounding to nearest."""

from itertools import product

import pytest
import torch
from torch import Tensor

from duquant.formats.integer import Integer
from duquant.formats.mxfp4 import MXFP4
from duquant.formats.number_format import NO_CLIP, Clip, NumberFormat, split_rows
from duquant.formats.nvfp4 import NVFP4
from duquant.rounding.gptq import GPTQ
from duquant.rounding.nearest import Nearest
from duquant.rounding.table import ROUNDINGS, build_rounding
from duquant.rounding.weight_rounding import Rounded
from tests.outliers import outlier_activation, random_weight

FORMS: list[NumberFormat] = [
    Integer(4),
    Integer(2, symmetric=True),
    Integer(3, group_size=16),
    Integer(10),
    MXFP4(),
    NVFP4(),
]
every_format = pytest.mark.parametrize("form", FORMS, ids=repr)
every_rounding = pytest.mark.parametrize("name", ROUNDINGS)
OUT, IN = 24, 64


def correlated(tokens: int, width: int, seed: int) -> Tensor:
    """Inputs whose channels share a few causes, some much louder than others."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(tokens, max(1, width // 4), generator=generator)
    mixing = torch.randn(max(1, width // 4), width, generator=generator)
    return causes @ mixing + 0.3 * outlier_activation(tokens, width, seed).clamp(-30, 30)


def dead_channels() -> Tensor:
    x = correlated(100, IN, 2)
    x[:, ::5] = 0
    return x


INPUTS = {
    "correlated": correlated(300, IN, 0),
    "fewer tokens than channels": correlated(20, IN, 1),
    "one token": correlated(1, IN, 2),
    "constant tokens": torch.ones(50, IN),
    "one repeated token": correlated(1, IN, 3).expand(50, IN),
    "dead channels": dead_channels(),
    "one live channel": torch.eye(IN)[:1] * 3,
    "zeros": torch.zeros(10, IN),
    "tiny": correlated(100, IN, 4) * 1e-18,
    "huge": correlated(100, IN, 5) * 1e15,
}


def costs(weight: Tensor, rounded: Rounded, form: NumberFormat, gram: Tensor) -> Tensor:
    """``e G eᵀ`` of every row, in float64."""
    error = (weight - values_of(rounded, form)).double()
    return ((error @ gram.double()) * error).sum(-1)


def values_of(rounded: Rounded, form: NumberFormat) -> Tensor:
    rows = split_rows(rounded.codes, form.group_size)
    return form.values(rows, rounded.grid).view(rounded.codes.shape)


@every_rounding
@every_format
@pytest.mark.parametrize("inputs", INPUTS)
def test_codes_can_be_stored_and_come_back(name: str, form: NumberFormat, inputs: str) -> None:
    weight, x = random_weight(OUT, IN, 0), INPUTS[inputs]
    rounded = build_rounding(name)(weight, form, NO_CLIP, x.t() @ x)
    assert rounded.codes.shape == weight.shape
    codes, grid = form.restore(form.store(rounded.codes, rounded.grid), IN)
    assert torch.equal(codes, rounded.codes)
    assert values_of(Rounded(codes, grid), form).isfinite().all()
    assert rounded.damping < 1


@every_rounding
@every_format
def test_the_grid_is_that_of_the_clipped_original(name: str, form: NumberFormat) -> None:
    weight, x = random_weight(OUT, IN, 1), INPUTS["correlated"]
    rows = split_rows(weight, form.group_size)
    ratios = torch.linspace(0.5, 1, len(rows)).unsqueeze(-1)
    clip = Clip(ratios, ratios)
    rounded = build_rounding(name)(weight, form, clip, x.t() @ x)
    expected = form.grid(rows, clip)
    assert all(torch.equal(*pair) for pair in zip(rounded.grid, expected, strict=True))


@every_rounding
def test_the_same_again_and_nothing_is_changed(name: str) -> None:
    weight, x = random_weight(OUT, IN, 2), INPUTS["correlated"]
    gram = x.t() @ x
    before = weight.clone(), gram.clone()
    first, second = (build_rounding(name)(weight, Integer(4), NO_CLIP, gram) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])
    assert not weight.requires_grad_().grad_fn
    assert not build_rounding(name)(weight, Integer(4), NO_CLIP, gram).grid[0].requires_grad


@every_rounding
@every_format
def test_weights_that_share_inputs_are_rounded_as_if_alone(name: str, form: NumberFormat) -> None:
    """Each keeps its own grid, also where that depends on the weight's largest entry."""
    x, rounding = INPUTS["correlated"], build_rounding(name)
    gram = x.t() @ x
    weights = [scale * random_weight(rows, IN, rows) for rows, scale in ((24, 1.0), (8, 30.0))]
    clips = [NO_CLIP, Clip(0.7, 0.7)]
    together = rounding.together(weights, form, clips, gram)
    for weight, clip, rounded in zip(weights, clips, together, strict=True):
        alone = rounding(weight, form, clip, gram)
        assert all(torch.equal(*pair) for pair in zip(rounded.grid, alone.grid, strict=True))
        # Products of more rows may add up in another order.
        assert (rounded.codes == alone.codes).float().mean() > 0.98
        assert (rounded.damping, rounded.is_raised) == (alone.damping, alone.is_raised)


def test_nearest_is_the_format_itself() -> None:
    for form in FORMS:
        weight = random_weight(OUT, IN, 3)
        rounded = Nearest()(weight, form)
        expected = form.fake_quantize(split_rows(weight, form.group_size)).view(weight.shape)
        assert torch.equal(values_of(rounded, form), expected)


@every_format
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("order", ["natural", "diagonal"])
def test_gptq_never_costs_more_than_nearest(form: NumberFormat, inputs: str, order: str) -> None:
    weight, x = random_weight(OUT, IN, 4), INPUTS[inputs]
    gram = x.t() @ x
    both = [
        rounding(weight, form, NO_CLIP, gram)
        for rounding in (GPTQ(order=order), Nearest())  # type: ignore[arg-type]
    ]
    gptq, nearest = (costs(weight, rounded, form, gram) for rounded in both)
    # Which is better is decided in float32, on the scale of the terms that cancel in it.
    errors = sum((weight - values_of(rounded, form)).abs().sum(-1) for rounded in both)
    rounding = 1e-6 * errors.double().square() * gram.abs().max().double()
    assert (gptq <= nearest + rounding).all()
    if inputs in ("correlated", "dead channels", "fewer tokens than channels"):
        assert gptq.sum() < 0.7 * nearest.sum()


def test_gptq_lies_between_the_best_codes_and_the_nearest() -> None:
    """Exhaustive search over all codes of a row, on problems small enough for it."""
    form, total = Integer(2), torch.zeros(3, dtype=torch.float64)
    every_row = torch.tensor(list(product(range(4), repeat=5)), dtype=torch.uint8)
    for seed in range(20):
        x, weight = correlated(8, 5, seed), random_weight(4, 5, seed)
        gram = x.t() @ x
        nearest = Nearest()(weight, form)
        gptq = GPTQ()(weight, form, NO_CLIP, gram)
        best = []
        for row in range(4):
            grid = tuple(part[[row]].expand(len(every_row), 1) for part in nearest.grid)
            best.append(costs(weight[row], Rounded(every_row, grid), form, gram).min())
        problem = [torch.stack(best)]
        problem += [costs(weight, rounded, form, gram) for rounded in (gptq, nearest)]
        scale = problem[2].mean()
        assert (problem[0] <= problem[1] + 1e-6 * scale).all()
        total += torch.stack([cost.mean() / scale for cost in problem])
    assert total[0] < total[1] < 0.8 * total[2]


def test_blocks_decide_speed_alone() -> None:
    weight, x = random_weight(OUT, IN, 5), INPUTS["correlated"]
    gram = x.t() @ x
    results = [
        GPTQ(block_columns=columns)(weight, Integer(4), NO_CLIP, gram).codes
        for columns in (1, 7, 64, 128)
    ]
    assert all(torch.equal(codes, results[0]) for codes in results)


def test_groups_keep_their_grids_in_any_order() -> None:
    """By falling diagonal, columns of all groups are visited in turns."""
    weight, form = random_weight(OUT, IN, 6), Integer(3, group_size=16)
    weight *= torch.tensor([1.0, 10.0, 100.0, 1000.0]).repeat_interleave(16)  # unlike grids
    x = INPUTS["correlated"]
    gram = x.t() @ x
    order = gram.diagonal().argsort(descending=True)
    assert len({int(column) // 16 for column in order[:8]}) > 1
    rounded = GPTQ(order="diagonal")(weight, form, NO_CLIP, gram)
    nearest = costs(weight, Nearest()(weight, form), form, gram)
    assert costs(weight, rounded, form, gram).sum() < 0.7 * nearest.sum()


def test_damping_says_whether_it_is_more_than_was_asked_for() -> None:
    weight, tokens = random_weight(OUT, IN, 9), random_weight(3, IN, 10)
    singular = tokens.t() @ tokens
    raised = GPTQ(damping=0.0)(weight, Integer(4), NO_CLIP, singular)
    assert raised.is_raised
    assert 0 < raised.damping < 1
    asked = GPTQ(damping=0.01)(weight, Integer(4), NO_CLIP, singular)
    assert (asked.damping, asked.is_raised) == (0.01, False)
    assert not Nearest()(weight, Integer(4)).is_raised


def test_uncorrelated_inputs_leave_nothing_to_feed_back() -> None:
    weight, gram = random_weight(OUT, IN, 7), torch.arange(1.0, IN + 1).diag()
    for form in FORMS:
        gptq = GPTQ()(weight, form, NO_CLIP, gram)
        assert torch.equal(gptq.codes, Nearest()(weight, form).codes)


def test_a_gram_matrix_that_is_not_finite_means_nearest_and_says_so() -> None:
    weight, gram = random_weight(OUT, IN, 8), torch.eye(IN)
    gram[3, 4] = torch.nan
    rounded = GPTQ()(weight, Integer(4), NO_CLIP, gram)
    assert rounded.damping == float("inf")
    assert rounded.is_raised
    assert torch.equal(rounded.codes, Nearest()(weight, Integer(4)).codes)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("round", {}, "there is no rounding 'round'; there are gptq, nearest"),
        ("nearest", {"damping": 1}, "nearest has no damping to choose; it has no options"),
        ("gptq", {"damping": -0.1}, "damping is -0.1; it must be 0 to 1e"),
        ("gptq", {"damping": 1e9}, r"damping is 1000000000\.0; it must be 0 to"),
        ("gptq", {"damping": float("nan")}, "damping is nan"),
        ("gptq", {"block_columns": 0}, "block_columns is 0; it must be at least 1"),
        ("gptq", {"order": "random"}, "order is 'random'; it must be one of natural, diagonal"),
    ],
)
def test_what_does_not_exist_is_refused(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_rounding(name, **options)


def test_which_roundings_look_at_the_inputs() -> None:
    assert {name: kind.needs_gram for name, kind in ROUNDINGS.items()} == {
        "nearest": False,
        "gptq": True,
    }
    with pytest.raises(AssertionError, match="needs the Gram matrix"):
        GPTQ()(random_weight(2, 4, 0), Integer(4))
