"""Are the estimates right? What preflight expected of three runs beside what they took.

    DUQUANT_ASSETS=… python -m tests.benchmarks.preflight quickstart ref-llama llama-2-7b …

The embedded model, a reference model with a short training, and one random block of LLaMA-2-7B's
shapes, each in a process of its own. Time is compared in seconds on the clock: on a busy machine
it says how busy that was.
"""

import argparse
import tempfile
from pathlib import Path

from tests.assets import ASSETS, REPOSITORY
from tests.benchmarks.accuracy import SUBJECTS
from tests.measured_run import measured_run
from tests.random_checkpoint import LLAMA_2_7B, write_random_checkpoint

UNITS = {"memory_bytes": (1e9, "GB"), "disk_bytes": (1e9, "GB")}


def quickstart(folder: Path) -> list[str]:
    """The embedded model as its configuration says."""
    return ["-c", str(REPOSITORY / "configs" / "quickstart.yaml")]


def ref_llama(folder: Path) -> list[str]:
    """The reference model, two epochs of LWC."""
    subject, text = SUBJECTS["ref-llama"], ASSETS / "assets" / "text"
    return [
        "--model.pretrained", str(ASSETS / "assets" / "models" / "ref-llama"),
        "--model.rotation.block_size", str(subject.block_size), "--model.lwc.epochs", "2",
        "--data.calibration", str(text / subject.calibration),
        "--data.validation", f"{{text: {text / subject.calibration}}}",
        "--data.num_samples", str(subject.num_samples),
        "--data.sequence_length", str(subject.sequence_length), "--data.validation_windows", "64",
    ]  # fmt: skip


def llama_2_7b(folder: Path) -> list[str]:
    """One block of LLaMA-2-7B's shapes, without LWC."""
    model = write_random_checkpoint(folder / "model", LLAMA_2_7B.with_blocks(1))
    return [
        "--model.pretrained", str(model), "--model.lwc.epochs", "0",
        "--data.calibration", "python_topics", "--data.validation", "{text: python_topics}",
        "--data.num_samples", "16", "--data.sequence_length", "512",
        "--data.validation_windows", "2",
    ]  # fmt: skip


def llama_2_7b_gptq(folder: Path) -> list[str]:
    """The same with GPTQ, on few tokens, so that its matrices decide."""
    gptq = str(REPOSITORY / "configs" / "w4a4_gptq.yaml")
    few = ["--data.num_samples", "4", "--data.validation", "{}", "--model.rotation.max_steps", "16"]
    return ["-c", gptq, *llama_2_7b(folder), *few]


RUNS = {
    "quickstart": quickstart,
    "ref-llama": ref_llama,
    "llama-2-7b": llama_2_7b,
    "llama-2-7b-gptq": llama_2_7b_gptq,
}


def main() -> None:
    """Print estimates, measurements and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="*", choices=RUNS, help="default: all")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print("| run | what | expected | measured | ratio |\n|---|---|---|---|---|")
    for name in options.runs or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            arguments = RUNS[name](Path(folder))
            run = measured_run(Path(folder) / "run", *arguments, threads=options.threads)
        for what, pair in run["preflight"].items():
            size, unit = UNITS.get(what, (1.0, "s"))
            ratio = pair["estimate"] / pair["measured"]
            print(
                f"| {name} | {what.partition('_')[0]} | {pair['estimate'] / size:.3g} {unit} "
                f"| {pair['measured'] / size:.3g} {unit} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
