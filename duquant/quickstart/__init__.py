"""A complete small LLaMA that ships with the package, so that everything can be tried offline.

Quantizing a tiny model usually proves nothing: tiny models have tame activations, and plain
rounding to four bits hardly hurts them. This one was trained to have the activation outliers of
large models (`train.py` says how), so rounding visibly fails on it and DuQuant visibly repairs it.
Load it like any other model folder:

    AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY)
    AutoTokenizer.from_pretrained(MODEL_DIRECTORY)

`model/README.md` lists its size, its training and its measured activations.
"""

from pathlib import Path

MODEL_DIRECTORY: Path = Path(__file__).resolve().parent / "model"
"""Folder of the embedded model: configuration, bf16 weights and tokenizer."""
