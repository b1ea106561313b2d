"""What is measured: models by a protocol, recipes, settings, and the commands that measure them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.real_models.weights import QWEN2_5_CODER, SMOLLM2, PackagedWeights

FULL_PRECISION = "full_precision"
RECIPES: dict[str, tuple[str, ...]] = {
    "nearest": (
        *("-c", "configs/w4a4.yaml", "--model.smoothing.enabled", "false"),
        *("--model.rotation.selector", "none"),
        *("--model.clipping.weight_ratio", "1.0", "--model.clipping.activation_ratio", "1.0"),
    ),
    "w4a4": ("-c", "configs/w4a4.yaml"),
    "w4a4_lwc": ("-c", "configs/w4a4_lwc.yaml"),
    "lwc_fast": ("-c", "configs/w4a4_lwc.yaml", "-c", "configs/lwc_fast.yaml"),
    "w4a4_gptq": ("-c", "configs/w4a4_gptq.yaml"),
    "w4a4_best": ("-c", "configs/w4a4_best.yaml"),
}
LEARNS_WEIGHT_CLIPS = ("w4a4_lwc", "lwc_fast", "w4a4_best")
SETTINGS: dict[str, tuple[str, ...]] = {
    "w4a4": (),
    "qkv16": (*("--model.query_bits", "16", "--model.key_bits", "16", "--model.value_bits", "16"),),
    "q16": ("--model.query_bits", "16"),
    "w6a6": (
        *("--model.weight_bits", "6", "--model.activation_bits", "6"),
        *("--model.clipping.activation_ratio", "1.0"),
    ),
    "w4a8": ("--model.activation_bits", "8", "--model.clipping.activation_ratio", "1.0"),
    "mxfp4": ("--model.weights.format", "mxfp4", "--model.activations.format", "mxfp4"),
    "nvfp4": ("--model.weights.format", "nvfp4", "--model.activations.format", "nvfp4"),
}
"""Numbers in place of a recipe's; Q, K and V follow the activations unless they are named."""


@dataclass(frozen=True)
class Subject:
    """A model, and how it is calibrated and measured unless it is asked otherwise.

    Attributes:
        weights: where it comes from.
        options: of fit, for this model.
        samples: calibration windows.
        length: tokens of a window.
        windows: of every text that is measured.
    """

    weights: PackagedWeights
    options: tuple[str, ...]
    samples: int
    length: int
    windows: int


SUBJECTS = {
    "smollm2": Subject(SMOLLM2, ("--model.rotation.block_size", "64"), 16, 512, 40),
    "qwen2_5_coder": Subject(QWEN2_5_CODER, ("--model.rotation.max_steps", "64"), 4, 256, 6),
}


@dataclass(frozen=True)
class Job:
    """Everything that is the same in every row.

    Attributes:
        model: directory of the full-precision model.
        work: where runs go.
        protocol: samples, length and windows, and the model's own options.
        calibration: text to calibrate on.
        texts: texts to measure, by name.
        seed: draws windows and rotations.
        fit: more options of fit.
        tasks: options of evaluate that ask for tasks; none for perplexity alone.
    """

    model: Path
    work: Path
    protocol: Subject
    calibration: str
    texts: Mapping[str, str]
    seed: int = 0
    fit: Sequence[str] = ()
    tasks: Sequence[str] = field(default=())

    def run(self, recipe: str, setting: str) -> Path:
        """Directory of a row."""
        return self.work / (recipe if recipe == FULL_PRECISION else f"{recipe}-{setting}")

    def commands(self, recipe: str, setting: str) -> list[list[str]]:
        """What measures a row, after ``python cli.py``; the first gives the perplexities."""
        run, length, windows = self.run(recipe, setting), *self._windows()
        texts = "{" + ", ".join(f"{name}: {text}" for name, text in self.texts.items()) + "}"
        if recipe == FULL_PRECISION:
            own = ["--model", str(self.model), "--dtype", "float32", "--output_dir", str(run)]
            own += ["--perplexity", texts, "--sequence_length", length]
            return [["evaluate", *own, "--perplexity_windows", windows, *self.tasks]]
        ratios = ("--model.clipping.weight_ratio", "1.0")
        is_wide = setting == "w6a6" and recipe not in LEARNS_WEIGHT_CLIPS
        fit = [
            *("fit", *RECIPES[recipe], *SETTINGS[setting], *(ratios if is_wide else ())),
            *("--model.pretrained", str(self.model), *self.protocol.options),
            *("--data.calibration", self.calibration, "--data.num_samples"),
            *(str(self.protocol.samples), "--data.sequence_length", length),
            *("--data.seed", str(self.seed), "--data.validation", texts),
            *("--data.validation_windows", windows, *self.fit, "--output_dir", str(run)),
        ]
        if not self.tasks:
            return [fit]
        return [fit, ["evaluate", "--run", str(run), "--dtype", "float32", *self.tasks]]

    def _windows(self) -> tuple[str, str]:
        return str(self.protocol.length), str(self.protocol.windows)
