"""The model card: ``README.md`` of a model directory, written from the run that made it.

Hubs show it first, and it is what somebody finds who is handed the directory alone: what was done
to which model, what it measured, what it takes on disk, its limits, and the lines that install,
load, serve and check it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from duquant.atomic_files import write_text
from duquant.config import Recipe
from duquant.json_files import read_json
from duquant.model.checkpoint import INDEX, WeightIndex, meta_tensors
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.plain_text import in_markdown
from duquant.user_paths import user_path

CARD = "README.md"
KINDS = {
    "packed": "packed weights",
    "scale": "scales and zero points",
    "zero": "scales and zero points",
    "rotations": "rotations, permutations, smoothing",
    "permutations": "rotations, permutations, smoothing",
    "online_scale": "rotations, permutations, smoothing",
}
"""What each stored tensor counts as; everything else is not quantized."""
UNQUANTIZED = "not quantized (embeddings, norms, head)"


def write_model_card(
    directory: Path, pretrained: str, recipe: Recipe, summary: Mapping[str, Any] | None = None
) -> None:
    """Write the card of a complete model directory.

    Args:
        directory: the model directory.
        pretrained: the model it was made from, as the user named it.
        recipe: how it was quantized.
        summary: the run's ``summary.json``, once there is one.
    """
    source = user_path(pretrained)
    name = source.resolve().name
    weights, activations = recipe.formats[:2]
    bits = recipe.bits_in_words
    is_on_hub = pretrained.count("/") == 1 and not source.exists()
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["duquant", "quantized", *bits.lower().split()],
        base_model=pretrained if is_on_hub else None,
    )
    sections = [
        f"---\n{front.to_yaml()}\n---",
        f"# {in_markdown(name)}, {bits} by DuQuant",
        f"Weights of {weights.bits} and activations of {activations.bits} bits, made "
        f"from {in_markdown(name)}: channel smoothing, block rotations and a zigzag permutation "
        f"at every linear layer's input{', learned weight clipping' if recipe.has_lwc else ''} "
        f"(DuQuant, arXiv 2406.01721). Only safetensors and JSON: no pickles, no code.",
        _loading(),
        *([_perplexities(summary)] if summary else []),
        _sizes(directory),
        _limits(recipe),
        f"## Recipe\n\n```json\n{json.dumps(recipe.to_dict(), indent=2)}\n```",
    ]
    write_text(directory / CARD, "\n\n".join(sections) + "\n")


def size_breakdown(directory: Path) -> dict[str, int]:
    """Bytes on disk by what they are for, of a complete model directory."""
    sizes: dict[str, int] = {}
    files = sorted(set(read_json(directory / INDEX, WeightIndex)["weight_map"].values()))
    for name, tensor in meta_tensors(directory / file for file in files).items():
        kind = KINDS.get(name.rpartition(".")[2], UNQUANTIZED)
        sizes[kind] = sizes.get(kind, 0) + tensor.nbytes
    return sizes


def _loading() -> str:
    return """## Install, load, serve

```bash
pip install duquant
```

That is all that transformers needs; `import duquant` comes before the model is loaded:

```python
import duquant
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")  # device_map: accelerate
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)
cache = duquant.PackedCache(model)  # keys and values stay in a few bits
print(tokenizer.decode(model.generate(**inputs, past_key_values=cache, max_new_tokens=40)[0]))
```

vLLM finds the method by itself, once it is installed beside:

```bash
pip install "duquant[vllm]"
vllm serve path/to/this/directory
```

`logits.json` holds what the model says after 16 prompts. Does a host compute the same?

```bash
python -m duquant.check path/to/this/directory  # --vllm: in vLLM
```

`lm_eval` alone does not know the method; this command knows it and takes all of its options:

```bash
pip install "duquant[evaluate]"
python -m duquant.lm_eval --model hf --model_args pretrained=path/to/this/directory --tasks piqa
```"""


def _limits(recipe: Recipe) -> str:
    formats = recipe.formats
    operands = ("queries", "keys", "values")
    kept = [name for name in operands if getattr(formats, name).bits >= UNQUANTIZED_BITS]
    attention = f" ({', '.join(kept)} are not quantized)" if kept else ""
    limits = [
        f"Embeddings, norms and the head are not quantized{attention}.",
        "Only duquant runs it: other tools read neither its transforms nor its packed weights. "
        "`python cli.py export` writes layouts for them.",
        "Roundings amplify last bits: another device or backend may choose other words where two "
        "are about equally probable.",
        "What the original model may be used for, its licence and its faults are still its own.",
    ]
    return "\n".join(["## Limits", "", *(f"* {limit}" for limit in limits)])


def _perplexities(summary: Mapping[str, Any]) -> str:
    if not summary["perplexity"]:
        return "## Perplexity\n\nIt was not measured when the model was made."
    lines = ["| corpus | full precision | quantized |", "|---|---|---|"]
    for corpus, values in summary["perplexity"].items():
        numbers = f"{values['full_precision']:.3f} | {values['quantized']:.3f}"
        lines.append(f"| {in_markdown(corpus)} | {numbers} |")
    protocol = in_markdown(summary["protocol"])
    return "\n".join(["## Perplexity", "", *lines, "", f"Protocol: {protocol}."])


def _sizes(directory: Path) -> str:
    sizes = size_breakdown(directory)
    lines = ["| part | MB |", "|---|---|"]
    lines += [f"| {kind} | {size / 1e6:.2f} |" for kind, size in sizes.items()]
    lines.append(f"| all | {sum(sizes.values()) / 1e6:.2f} |")
    return "\n".join(["## Size", "", *lines])
