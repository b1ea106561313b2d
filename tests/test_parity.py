"""Our numbers beside those of the authors' released code, stage by stage.

A rotation search is a chain of arg-maxima: one rounding difference sends it down another path. So
every stage starts from what the authors' code recorded before it (``tests/parity_cases.py``).
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from duquant.formats.number_format import split_rows
from duquant.model.channel_ranges import observe_sites
from duquant.model.structure import LINEARS, SITES
from duquant.nn.clipping import ClipFactors
from duquant.ops.affine import affine_grid, dequantize, fake_quantize, quantize
from duquant.ops.dual_transform import DualTransform, apply_transform, find_transform
from duquant.ops.permutation import zigzag_permutation
from duquant.ops.rotation import BaseSource, find_rotation, spreading_matrix
from tests.assets import ASSETS
from tests.parity_cases import (
    FILES,
    SCALE_NAMES,
    ModelCase,
    TeacherForcedBlock,
    each_block,
    each_block_with_lwc,
    each_listed,
    each_model,
    each_smoothed_block,
    finished_block,
    kind_of,
    model_case,
    parametrize,
    recorded_bases,
    tensors_of,
)

ROTATION = {"rtol": 0, "atol": 1e-6}
"""A rotation is a chain of float32 products; the authors multiply in another order."""
WEIGHT = {"rtol": 0, "atol": 1e-5}
"""Weights of order one after two rotations; a wrong integer would be a step of about 0.05."""
STREAM = {"rtol": 1e-5, "atol": 1e-5}
"""Hidden states of order one; attention adds in another order than the authors' softmax."""


@pytest.mark.skipif(not FILES, reason=f"no parity cases in {ASSETS} (set DUQUANT_ASSETS)")
@pytest.mark.parametrize("path", FILES or [ASSETS], ids=lambda path: f"parity-{path.stem}")
def test_parity_file_is_of_a_known_kind(path: Path) -> None:
    assert kind_of(path) != "unknown"
    assert tensors_of(path)


# Quantizer


@parametrize("path, listed", "quantizer", each_listed)
def test_parity_quantizer(path: Path, listed: tuple[int, dict[str, Any]]) -> None:
    _, case = listed
    tensors, name, group_size = tensors_of(path), case["name"], case.get("group_size")
    high: Any = case.get("lac", case.get("swc", 1.0))
    low = high
    if case.get("lwc"):
        suffix = f"_g{group_size}" if group_size else ""
        high, low = (tensors[f"lwc_{end}{suffix}"].sigmoid() for end in ("hi", "lo"))
    options = {"symmetric": case["symmetric"], "clip_high": high, "clip_low": low}
    rows = split_rows(tensors[case["tensor"]], group_size)
    grid = affine_grid(rows, case["bits"], **options)
    quantized = dequantize(quantize(rows, grid, case["bits"]), grid)
    # The same float32 operations in the same order; a sigmoid's last bit may depend on the CPU.
    scale = tensors[f"{name}_scale"].flatten()
    torch.testing.assert_close(grid.scale.flatten(), scale, rtol=1e-6, atol=0)
    if f"{name}_zero" in tensors:
        assert torch.equal(grid.zero.flatten(), tensors[f"{name}_zero"].flatten())
    torch.testing.assert_close(quantized.reshape(tensors[name].shape), tensors[name], **WEIGHT)
    assert torch.equal(fake_quantize(rows, case["bits"], **options), quantized)


# Transform


def searched(x: Tensor, case: dict[str, Any], draw_base: BaseSource) -> Tensor:
    return find_rotation(
        x,
        block_size=case["block_size"],
        max_steps=case["max_rotation_step"],
        selector="authors",
        scope="shared",
        generator=torch.Generator(),
        draw_base=draw_base,
    )


@parametrize("path, listed", "transform", each_listed)
def test_parity_single_search_and_permutation(path: Path, listed: tuple[int, Any]) -> None:
    position, case = listed
    recorded = {
        name.removeprefix(f"c{position}_"): tensor for name, tensor in tensors_of(path).items()
    }
    x = recorded["x"]
    rotation = searched(x, case, recorded_bases(recorded["single_base"].unsqueeze(0)))
    torch.testing.assert_close(rotation[0], recorded["single_rotation"], **ROTATION)
    permutation = zigzag_permutation(x.abs().amax(dim=0), case["block_size"])
    assert torch.equal(permutation, recorded["single_permutation"])


@parametrize("path, listed", "transform", each_listed)
def test_parity_dual_transform(path: Path, listed: tuple[int, Any]) -> None:
    position, case = listed
    recorded = {
        name.removeprefix(f"c{position}_"): tensor for name, tensor in tensors_of(path).items()
    }
    x, draw_base = recorded["x"], recorded_bases(recorded["bases"])
    transform = find_transform(
        x,
        lambda tensor: searched(tensor, case, draw_base),
        block_size=case["block_size"],
        permutation_times=case["permutation_times"],
    )
    torch.testing.assert_close(transform.rotations[:, 0], recorded["rotations"], **ROTATION)
    if case["permutation_times"]:
        assert torch.equal(transform.permutations, recorded["permutations"])
    # Entries are as large as the outliers of x.
    torch.testing.assert_close(
        apply_transform(x, transform), recorded["y"], rtol=1e-6, atol=1e-6 * float(x.abs().max())
    )


def each_spreading_matrix(path: Path) -> Any:
    for name in tensors_of(path):
        if name.endswith("_without_random_part"):
            yield name, name


@parametrize("path, name", "transform", each_spreading_matrix)
def test_parity_base_without_its_random_part(path: Path, name: str) -> None:
    recorded = tensors_of(path)[name]
    torch.testing.assert_close(spreading_matrix(len(recorded)), recorded, **ROTATION)


# Model


@parametrize("path, case", "model", each_model)
def test_parity_full_precision_logits(path: Path, case: ModelCase) -> None:
    logits = case.full_precision_model()(case.tensors["eval_ids"]).logits
    torch.testing.assert_close(logits, case.tensors["fp_logits"], **STREAM)


@parametrize("path, index", "model", each_block)
def test_parity_activation_peaks(path: Path, index: int) -> None:
    case = model_case(path)
    model = case.full_precision_model()
    with observe_sites(model.model.layers[index]) as ranges:
        model(case.tensors["calibration_ids"])
    for name, peak in case.recorded_peaks(index).items():
        torch.testing.assert_close(ranges[name].peak(), peak, **STREAM)


@parametrize("path, index", "model", each_smoothed_block)
def test_parity_smoothing_scales(path: Path, index: int) -> None:
    block = finished_block(path, index)
    assert set(block.smoothed.scales) == set(SCALE_NAMES)
    for site, scale in block.smoothed.scales.items():
        recorded = block.case.tensors[f"layers.{index}.{SCALE_NAMES[site]}_smooth_scale"]
        # Two powers and a quotient in float32.
        torch.testing.assert_close(scale, recorded, rtol=1e-6, atol=0)


@parametrize("path, index", "model", each_block)
def test_parity_rotations_and_permutations(path: Path, index: int) -> None:
    block = finished_block(path, index)
    for site in SITES:
        transform: DualTransform = block.quantized.sites[site.name].transform
        for linear in site.linears:
            recorded = f"layers.{index}.{linear}.act_quantizer"
            rotations = block.case.tensors[f"{recorded}.R"]
            torch.testing.assert_close(
                transform.rotations[:, 0], rotations.view_as(transform.rotations[:, 0]), **ROTATION
            )
            if block.case.settings["permutation_times"]:
                permutations = block.case.tensors[f"{recorded}.permutation_list"]
                assert torch.equal(transform.permutations, permutations)


@parametrize("path, index", "model", each_block)
def test_parity_statistic_stream(path: Path, index: int) -> None:
    block = finished_block(path, index)
    recorded = block.case.samples(index, "statistic_stream.output")
    torch.testing.assert_close(block.mean_output, recorded, **STREAM)


@parametrize("path, index", "model", each_block)
def test_parity_dequantized_weights(path: Path, index: int) -> None:
    block = finished_block(path, index)
    for name in LINEARS:
        recorded = block.case.tensors[f"layers.{index}.{name}.dequantized_weight"]
        with torch.no_grad():
            weight = block.quantized.linears[name].quantized_weight()
        torch.testing.assert_close(weight, recorded, **WEIGHT)


@parametrize("path, index", "model", each_block)
@torch.no_grad()
def test_parity_block_outputs(path: Path, index: int) -> None:
    block = finished_block(path, index)
    case = block.case
    if index:
        entering = case.samples(index - 1, "output_on_eval_ids")
    else:
        embedding = case.tensors["model.model.embed_tokens.weight"]
        entering = F.embedding(case.tensors["eval_ids"], embedding)
    recorded = case.samples(index, "output_on_eval_ids")
    torch.testing.assert_close(block(entering), recorded, **STREAM)


@parametrize("path, index", "model", each_block_with_lwc)
@torch.no_grad()
def test_parity_streams(path: Path, index: int) -> None:
    block = finished_block(path, index)
    case = block.case
    model = case.full_precision_model()
    for stream, run in (
        ("quantized_stream", block),
        ("full_precision_stream", lambda x: model.model.layers[index](x, **block.context)),
    ):
        output = run(case.samples(index, f"{stream}.input"))
        torch.testing.assert_close(output, case.samples(index, f"{stream}.output"), **STREAM)


@parametrize("path, index", "model", each_block_with_lwc)
def test_parity_lwc_losses(path: Path, index: int) -> None:
    case = model_case(path)
    block, recipe = TeacherForcedBlock(case, index), case.recipe
    plain = case.full_precision_model().model.layers[index]
    inputs = case.samples(index, "quantized_stream.input").split(1)
    targets = case.samples(index, "full_precision_stream.output").split(1)
    factors = [factor for clip in block.clips.values() for factor in clip.parameters()]
    optimizer = torch.optim.AdamW(factors, lr=recipe.lwc.learning_rate, weight_decay=0)
    losses = torch.zeros(recipe.lwc.epochs, len(inputs))
    for epoch in range(recipe.lwc.epochs):
        for sample, (hidden, target) in enumerate(zip(inputs, targets, strict=True)):
            output = block(hidden)
            loss = F.mse_loss(output, target)
            if case.settings.get("aug_loss"):
                loss += F.mse_loss(output, plain(hidden, **block.context))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[epoch, sample] = loss.detach()
    recorded = case.tensors["lwc_losses"][index]
    # Means over squares of hidden states that agree to 1e-6.
    torch.testing.assert_close(losses[0], recorded[0], rtol=1e-5, atol=0)
    # Adam divides a gradient by its own size, so where one is almost zero a last digit can grow
    # into a whole step, move a single integer, and show in the losses of later epochs.
    torch.testing.assert_close(losses, recorded, rtol=1e-3, atol=0)
    for name, clip in block.clips.items():
        assert isinstance(clip, ClipFactors)
        for logit, bound in ((clip.high_logit, "upbound"), (clip.low_logit, "lowbound")):
            final = case.tensors[f"layers.{index}.{name}.weight_quantizer.{bound}_factor"]
            # For the same reason on average: every step moves a factor by the learning rate.
            assert (logit.detach() - final).abs().mean() < 1e-2 * recipe.lwc.learning_rate


@parametrize("path, case", "model", each_model)
@torch.no_grad()
def test_parity_quantized_logits(path: Path, case: ModelCase) -> None:
    model = case.full_precision_model()
    for index in range(case.num_blocks):
        model.model.layers[index] = finished_block(path, index).layer
    logits = torch.cat([model(ids).logits for ids in case.tensors["eval_ids"].split(1)])
    torch.testing.assert_close(logits, case.tensors["quantized_logits"], **STREAM)
