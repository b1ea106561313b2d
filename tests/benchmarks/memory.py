"""What a model of many blocks takes: peak memory and seconds against the number of blocks.

    python -m tests.benchmarks.memory --blocks 1 2 4 --samples 16

A random model of LLaMA-2-7B's shapes (405 MB a block, 524 MB outside of them, bfloat16 on disk) is
written into a temporary folder, then calibrated, exported and measured by the command line in a
process of its own, in float32. What is printed is the process's largest resident memory.
"""

import argparse
import tempfile
from pathlib import Path

from tests.measured_run import measured_run
from tests.random_checkpoint import LLAMA_2_7B, Shape, write_random_checkpoint

SHAPES = {"llama-2-7b": LLAMA_2_7B, "small": Shape(1)}


def main() -> None:
    """Print a row for every number of blocks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=256, help="of a rotation search")
    parser.add_argument("--epochs", type=int, default=0, help="of LWC")
    parser.add_argument("--stream_memory_gb", default="null")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print("| blocks | on disk | peak memory | above libraries | s per block | validation |")
    print("|---|---|---|---|---|---|")
    for blocks in options.blocks:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            write_random_checkpoint(model, SHAPES[options.shape].with_blocks(blocks))
            size = sum(file.stat().st_size for file in model.iterdir())
            run = measured_run(
                Path(folder) / "run",
                "--model.pretrained", str(model),
                "--model.lwc.epochs", str(options.epochs),
                "--model.rotation.max_steps", str(options.steps),
                "--data.calibration", "python_topics",
                "--data.validation", "{python_topics: python_topics}",
                "--data.num_samples", str(options.samples),
                "--data.sequence_length", str(options.tokens),
                "--data.validation_windows", "2",
                "--data.stream_memory_gb", options.stream_memory_gb,
                threads=options.threads,
            )  # fmt: skip
        above = run["peak"] - run["imported"]
        measuring = run["preflight"]["validation_seconds"]["measured"]
        print(
            f"| {blocks} | {size / 1e9:.1f} GB | {run['peak'] / 1e9:.2f} GB | {above / 1e9:.2f} GB "
            f"| {run['seconds']['total'] / blocks:.0f} | {measuring:.0f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
