"""Case files of the authors' numbers, told apart by what they hold.

A case is a JSON file with the settings and a safetensors file of the same name. Whatever lies in
the folder is a case; nothing here knows a file's name. Tensor names are the authors'.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from duquant.config import ClippingConfig, LWCConfig, Recipe, RotationConfig, SmoothingConfig
from duquant.model.channel_ranges import ChannelRange
from duquant.model.smoothing import smooth_block
from duquant.model.structure import LINEARS, SITES
from duquant.model.surgery import Clip, QuantizedBlock, calibrate_sites, insert_quantizers
from duquant.nn.attention import register_attention
from duquant.nn.attention_quantizer import ATTENTION_NAME
from duquant.nn.clipping import ClipFactors, FixedClip
from duquant.ops.rotation import BaseSource
from tests.assets import ASSETS

FILES = sorted((ASSETS / "parity").glob("*.json"))
SCALE_NAMES = dict(zip((site.name for site in SITES), ("qkv", "out", "fc1", "down"), strict=True))
"""What the authors call each site's smoothing scale."""


@cache
def settings_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def tensors_of(path: Path) -> dict[str, Tensor]:
    return load_file(path.with_suffix(".safetensors"))


def kind_of(path: Path) -> str:
    """``quantizer``, ``transform``, ``model`` or, for anything else, ``unknown``."""
    settings = settings_of(path)
    if isinstance(settings, dict):
        return "model" if "config" in settings else "unknown"
    if not settings or not all(isinstance(case, dict) for case in settings):
        return "unknown"
    for kind, keys in (("quantizer", {"tensor", "bits"}), ("transform", {"tokens", "width"})):
        if all(keys <= case.keys() for case in settings):
            return kind
    return "unknown"


def parametrize(names: str, kind: str, cases: Callable[[Path], Iterator[Any]]) -> Any:
    """Parametrize a test over the cases of every file of one kind, or skip it with the reason."""
    drawn = [
        pytest.param(path, case, id=f"parity-{path.stem}-{case_id}")
        for path in FILES
        if kind_of(path) == kind
        for case_id, case in cases(path)
    ]
    where = f"no {kind} parity cases in {ASSETS / 'parity'} (set DUQUANT_ASSETS)"
    nothing = pytest.param(None, None, id="parity-none", marks=pytest.mark.skip(reason=where))
    return pytest.mark.parametrize(names, drawn or [nothing])


def recorded_bases(bases: Tensor) -> BaseSource:
    """Hand out recorded base matrices in the order in which the authors drew them."""
    remaining = iter(bases)
    return lambda number, size: torch.stack([next(remaining) for _ in range(number)])


class ModelCase:
    """A whole model that the authors' code quantized, stage by stage."""

    def __init__(self, path: Path) -> None:
        register_attention()
        self.settings, self.tensors = settings_of(path), tensors_of(path)
        self.has_lwc = bool(self.settings["lwc"])
        self.num_blocks = self.settings["config"]["num_hidden_layers"]
        self.tokens = self.tensors["eval_ids"].shape[1]

    @property
    def recipe(self) -> Recipe:
        """The settings in our words; the authors' ``swc: null`` without LWC means no clipping."""
        given = self.settings
        ratio = None if self.has_lwc else (given["swc"] or 1.0)
        return Recipe(
            weight_bits=given["wbits"],
            activation_bits=given["abits"],
            symmetric=given.get("symmetric", False),
            group_size=given.get("group_size"),
            smoothing=SmoothingConfig(
                enabled=given["smooth"], alpha=given["alpha"], attention_output="query_channel"
            ),
            rotation=RotationConfig(
                block_size=given["block_size"],
                max_steps=given["max_rotation_step"],
                permutation_times=given["permutation_times"],
                selector="authors",
                scope="shared",
            ),
            clipping=ClippingConfig(weight_ratio=ratio, activation_ratio=given["lac"] or 1.0),
            lwc=LWCConfig(
                epochs=given["epochs"] if self.has_lwc else 0,
                learning_rate=given["lwc_lr"],
                batch_size=1,
                initialization="constant",
                schedule="constant",
                zero_point_gradient=False,
            ),
        )

    def full_precision_model(self) -> Any:
        options = {"model_type": "llama", **self.settings["config"]}
        theta = self.settings["rope_theta"]
        config = AutoConfig.for_model(
            options.pop("model_type"),
            **options,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
        )
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME)
        stored = {
            name.removeprefix("model."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith("model.")
        }
        model.load_state_dict(stored)
        return model.eval().requires_grad_(False)

    def context(self, model: Any) -> dict[str, Any]:
        positions = torch.arange(self.tokens).unsqueeze(0)
        angles = model.model.rotary_emb(torch.zeros(1), positions)
        return {"attention_mask": None, "position_ids": positions, "position_embeddings": angles}

    def recorded_peaks(self, index: int) -> dict[str, Tensor]:
        name = f"act_absmax.model.layers.{index}"
        return {site.name: self.tensors[f"{name}.{site.linears[0]}"] for site in SITES}

    def recorded_ranges(self, index: int) -> dict[str, ChannelRange]:
        """Ranges with the recorded peaks at both ends."""
        none = torch.zeros((), dtype=torch.float64)
        peaks = self.recorded_peaks(index)
        return {name: ChannelRange(peak, -peak, none, none) for name, peak in peaks.items()}

    def recorded_bases(self, index: int) -> BaseSource:
        per_block = len(SITES) * (self.settings["permutation_times"] + 1)
        drawn = self.tensors["rotation_bases_in_call_order"]
        return recorded_bases(drawn[index * per_block : (index + 1) * per_block])

    def samples(self, index: int, stream: str) -> Tensor:
        return self.tensors[f"layers.{index}.{stream}"]


class TeacherForcedBlock:
    """One block, quantized from what the authors' code recorded at its door.

    Its clip factors are fresh, as they were during the authors' calibration pass.
    """

    def __init__(self, case: ModelCase, index: int) -> None:
        self.case, self.index = case, index
        model = case.full_precision_model()
        self.layer: nn.Module = model.model.layers[index]
        self.context = case.context(model)
        recipe = case.recipe
        self.smoothed = smooth_block(self.layer, case.recorded_ranges(index), recipe)
        self.clips = {name: self._fresh_clip(name) for name in LINEARS}
        self.quantized: QuantizedBlock = insert_quantizers(
            self.layer, recipe, self.clips, self.smoothed
        )
        self.mean_output = calibrate_sites(
            self.quantized,
            lambda: self(case.samples(index, "statistic_stream.input")),
            recipe,
            torch.Generator(),
            draw_base=case.recorded_bases(index),
        )

    def __call__(self, hidden: Tensor) -> Tensor:
        """One sample at a time: the authors' quantized forward knows no more."""
        output: Tensor = torch.cat([self.layer(one, **self.context) for one in hidden.split(1)])
        return output

    def take_recorded_factors(self) -> "TeacherForcedBlock":
        """Put the clip factors that the authors' code ended with in place of the fresh ones."""
        for name, clip in self.clips.items():
            if isinstance(clip, ClipFactors):
                recorded = f"layers.{self.index}.{name}.weight_quantizer"
                clip.high_logit.data.copy_(self.case.tensors[f"{recorded}.upbound_factor"])
                clip.low_logit.data.copy_(self.case.tensors[f"{recorded}.lowbound_factor"])
        return self

    def _fresh_clip(self, name: str) -> Clip:
        if not self.case.has_lwc:
            return FixedClip(self.case.recipe.weight_ratio)
        weight = self.layer.get_submodule(name).get_parameter("weight")
        return ClipFactors(weight.numel() // (self.case.recipe.group_size or weight.shape[1]))


@cache
def model_case(path: Path) -> ModelCase:
    return ModelCase(path)


@cache
def finished_block(path: Path, index: int) -> TeacherForcedBlock:
    """The block after calibration and LWC; shared by tests, which must not change it."""
    return TeacherForcedBlock(model_case(path), index).take_recorded_factors()


def each_listed(path: Path) -> Iterator[Any]:
    for position, case in enumerate(settings_of(path)):
        yield case.get("name", f"case{position}"), (position, case)


def each_model(path: Path) -> Iterator[Any]:
    yield "model", model_case(path)


def each_block(path: Path) -> Iterator[Any]:
    for index in range(settings_of(path)["config"]["num_hidden_layers"]):
        yield f"block{index}", index


def each_block_with_lwc(path: Path) -> Iterator[Any]:
    return each_block(path) if settings_of(path)["lwc"] else iter(())


def each_smoothed_block(path: Path) -> Iterator[Any]:
    return each_block(path) if settings_of(path)["smooth"] else iter(())
