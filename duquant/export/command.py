"""``python cli.py export``: a finished run's model in another layout."""

from pathlib import Path

from rich.console import Console

from duquant.export.conversion import QuantizedSource, export_model
from duquant.export.targets.table import EXPORTERS
from duquant.progress_bar import progress_bar
from duquant.terminal import say


def export(run: str, to: str = "native", output_dir: str | None = None) -> None:
    """Write a quantized model in another layout.

    Args:
        run: a finished run's directory, or a quantized model directory.
        to: the layout: native (today's own, for models of earlier releases, which also get their
            logits.json), dequantized (a plain
            bfloat16 model with the error of the quantized weights, for any tool) or
            compressed-tensors (integers for transformers and vLLM, of recipes without a transform
            or with Hadamard rotations).
        output_dir: the directory to write (default: export-LAYOUT in the run).

    Raises:
        ValueError: if there is no such layout or model, or the layout cannot express the recipe.
    """
    if to not in EXPORTERS:
        raise ValueError(f"there is no layout {to!r}; there are {', '.join(EXPORTERS)}")
    directory = _model_directory(Path(run).expanduser())
    base = directory.parent if directory.name == "model" else directory
    target = base / f"export-{to}" if output_dir is None else Path(output_dir).expanduser()
    source, console = QuantizedSource(directory), Console(stderr=True)
    with progress_bar(console, counts_steps=True) as bar:
        task = bar.add_task(f"exporting to {to}", total=source.num_blocks)
        export_model(source, target, EXPORTERS[to](), lambda *_: bar.advance(task))
    say(f"{to} model: {target}")


def _model_directory(path: Path) -> Path:
    for directory in (path / "model", path):
        if (directory / "config.json").is_file():
            return directory
    raise ValueError(f"{path} holds no run with a finished model, and no model")
