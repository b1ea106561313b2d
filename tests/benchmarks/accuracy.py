"""What each part of the algorithm is worth: perplexity of recipes over several seeds.

    python -m tests.benchmarks.accuracy --model ref-llama --seeds 5
    python -m tests.benchmarks.accuracy --model babyllama-1m --seeds 5 --only "DuQuant"

Every row is a recipe, every seed draws other random rotations; calibration windows stay the same. A
finished measurement is kept in ``--results`` and not repeated. Models and texts are looked for in
``DUQUANT_ASSETS``.
"""

import argparse
import json
import statistics
import tempfile
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import yaml
from lightning import Trainer

from callbacks.block_progression import BlockProgression
from duquant.config import ClippingConfig, LWCConfig, Recipe, RotationConfig, SmoothingConfig
from duquant.data.datamodule import CalibrationDataModule
from duquant.evaluation.perplexity import stream_losses
from duquant.modules.language_model import LanguageModel
from tests.assets import ASSETS, REPOSITORY

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subject:
    """A model and the protocol it is measured by."""

    calibration: str
    validation: str
    num_samples: int
    sequence_length: int
    block_size: int
    tokens: int = 40_000


SUBJECTS = {
    "ref-llama": Subject("wikitext2_valid.txt", "wikitext2_test.txt", 32, 256, 64),
    "babyllama-1m": Subject("tinystories_calibration.txt", "tinystories_test.txt", 32, 128, 16),
}


FAST_TRAINING = LWCConfig(
    **yaml.safe_load((REPOSITORY / "configs" / "lwc_fast.yaml").read_text())["model"]["lwc"]
)
AUTHORS_TRAINING = LWCConfig(
    epochs=20,
    learning_rate=1e-2,
    batch_size=1,
    initialization="constant",
    schedule="constant",
    zero_point_gradient=False,
)


def recipes(block_size: int) -> dict[str, Recipe]:
    """The table's rows, in order."""
    rotation = RotationConfig(block_size=block_size, selector="outlier", scope="per_block")
    plain = Recipe(
        rotation=replace(rotation, selector="none"),
        smoothing=SmoothingConfig(enabled=False),
        clipping=ClippingConfig(weight_ratio=1.0, activation_ratio=1.0),
        lwc=LWCConfig(epochs=0),
    )
    clipped = ClippingConfig(weight_ratio=0.8, activation_ratio=0.9)
    duquant = replace(plain, rotation=rotation, smoothing=SmoothingConfig(), clipping=clipped)
    once = replace(rotation, permutation_times=0)
    rows = {
        "round to nearest": plain,
        "smoothing only": replace(plain, smoothing=SmoothingConfig(), clipping=clipped),
        "R1 only": replace(duquant, rotation=once, smoothing=SmoothingConfig(enabled=False)),
        "smoothing + R1": replace(duquant, rotation=once),
        "R1 P R2 without smoothing": replace(duquant, smoothing=SmoothingConfig(enabled=False)),
    }
    kinds = [(selector, scope) for selector in ("authors", "outlier", "random")
             for scope in ("shared", "per_block")] + [("hadamard", "shared")]  # fmt: skip
    for selector, scope in kinds:
        rotated = replace(rotation, selector=selector, scope=scope)  # type: ignore[arg-type]
        rows[f"DuQuant, {selector}, {scope}"] = replace(duquant, rotation=rotated)
    for selector, scope in kinds:
        rotated = replace(rotation, selector=selector, scope=scope)  # type: ignore[arg-type]
        learned = ClippingConfig(activation_ratio=0.9)
        rows[f"DuQuant+LWC, {selector}, {scope}"] = replace(
            duquant, rotation=rotated, clipping=learned, lwc=LWCConfig()
        )
        rows[f"fast LWC training, {selector}, {scope}"] = replace(
            duquant, rotation=rotated, clipping=learned, lwc=FAST_TRAINING
        )
    for selector, scope in kinds[:4]:
        rotated = replace(rotation, selector=selector, scope=scope)  # type: ignore[arg-type]
        rows[f"authors' LWC training, {selector}, {scope}"] = replace(
            duquant, rotation=rotated, clipping=ClippingConfig(), lwc=AUTHORS_TRAINING
        )
    for name in ("w4a4_gptq", "w4a4_best"):
        rows[f"configs/{name}.yaml"] = configured(name, block_size)
    return rows


def configured(name: str, block_size: int) -> Recipe:
    """The recipe of a file in ``configs/``, with blocks that fit the model."""
    values = yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text())["model"]
    return Recipe.from_dict(
        {**values, "rotation": {**values["rotation"], "block_size": block_size}}
    )


def measure(name: str, recipe: Recipe, seed: int) -> float:
    """Calibrate once and return the quantized model's perplexity."""
    subject = SUBJECTS[name]
    texts, model_directory = ASSETS / "assets" / "text", ASSETS / "assets" / "models" / name
    data = CalibrationDataModule(
        str(model_directory),
        calibration=str(texts / subject.calibration),
        validation={"test": str(texts / subject.validation)},
        num_samples=subject.num_samples,
        sequence_length=subject.sequence_length,
        validation_windows=subject.tokens // subject.sequence_length,
        batch_size=recipe.lwc.batch_size,
    )
    with tempfile.TemporaryDirectory() as directory:
        fields = {key: getattr(recipe, key) for key in recipe.__dataclass_fields__}
        model = LanguageModel(str(model_directory), directory, seed=seed, **fields)
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            callbacks=[BlockProgression()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
        )
        trainer.fit(model, datamodule=data)
        losses = stream_losses(
            model.decoder,
            lambda index: [("quantized", model.directory.read_block(index, model.decoder))],
            ["quantized"],
            data.corpus_windows("test"),
            CPU,
        )
    return float(losses["quantized"].double().mean().exp())


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=SUBJECTS, default="ref-llama")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--only", default="", help="rows whose name contains one of these; separated by semicolons"
    )
    parser.add_argument("--results", type=Path, default=Path("runs/accuracy.jsonl"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for row, recipe in recipes(SUBJECTS[options.model].block_size).items():
        if not any(part in row for part in options.only.split(";")):
            continue
        random = recipe.rotation.selector not in ("none", "hadamard")
        values = []
        for seed in range(options.seeds if random else 1):
            key = {"model": options.model, "row": row, "seed": seed, "recipe": asdict(recipe)}
            values.append(_remembered(options.results, key))
            if values[-1] is None:
                values[-1] = measure(options.model, recipe, seed)
                with options.results.open("a") as opened:
                    opened.write(json.dumps({**key, "perplexity": values[-1]}) + "\n")
        known = [value for value in values if value is not None]
        spread = f"{min(known):.2f} to {max(known):.2f}" if len(known) > 1 else ""
        print(f"| {row} | {statistics.mean(known):.2f} | {spread} |", flush=True)


def _remembered(results: Path, key: dict[str, object]) -> float | None:
    if not results.is_file():
        return None
    for line in results.read_text().splitlines():
        stored = json.loads(line)
        if all(stored.get(name) == value for name, value in key.items()):
            return float(stored["perplexity"])
    return None


if __name__ == "__main__":
    main()
