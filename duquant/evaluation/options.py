"""Types of options that several subcommands take."""

from typing import Literal

BatchSize = int | Literal["auto"]
"""Rows of a batch; ``auto`` is what fits."""
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""What a model computes in; ``auto`` is what it is stored in, and float32 on a CPU."""
