"""One look at the product on a GPU: is it right, and where does the time go.

    python -m tests.benchmarks.gpu_check --output gpu_check.jsonl
    python -m tests.benchmarks.gpu_check --device cpu --small               # a rehearsal

One line of JSON per check, with its figures; the last line sums up and names checks for which the
device lacks something, and the status is 1 if a check has failed. It needs PyTorch and the product
alone: weights are random, the model is the embedded one. Checks run in a process that is begun anew
when a check ends it or takes too long, so a segmentation fault or an error that a GPU does not
recover from is one failed line. ``tests/emulated`` runs all of them on a device without hardware.
"""

import argparse
import contextlib
import io
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.assets import REPOSITORY
from tests.benchmarks.gpu import calibrated, kernels, right, timed
from tests.benchmarks.gpu.bench import CHECKS, Bench

Line = dict[str, Any]
ORDER = [
    name
    for module in (right, kernels, calibrated, timed)
    for name, (work, _) in CHECKS.items()
    if work.__module__ == module.__name__
]
"""What is simple comes first."""
STARTING = 120.0
"""Seconds that a process may take until its first check begins."""


def run_check(name: str, bench: Bench) -> Line:
    """One check's line; whatever it raises is told in it."""
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # standard output is for lines
            figures = {"ok": True, **CHECKS[name][0](bench)}
    except Exception as error:
        traceback.print_exc()
        figures = {"ok": False, "error": f"{type(error).__name__}: {error}"[:600]}
    return {"check": name, **figures, "seconds": round(time.perf_counter() - start, 2)}


def run_here(names: Sequence[str], bench: Bench) -> None:
    """Run checks in this process, saying before each which one begins."""
    for name in names:
        print(json.dumps({"begins": name}), flush=True)
        print(json.dumps(run_check(name, bench), default=str), flush=True)


def lines_of(names: Sequence[str], options: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Lines of checks that run in processes of their own, as many as it takes."""
    left = list(names)
    while left:
        for line in _until_it_ends(tuple(left), options, folder):
            left.remove(line["check"])
            yield line


def _until_it_ends(
    names: Sequence[str], options: argparse.Namespace, folder: Path
) -> Iterator[Line]:
    """Lines of one process; the check that ends it, or at which it is ended, is the last one."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.benchmarks.gpu_check"]
    command += ["--inside", str(folder), "--device", options.device, "--checks", ",".join(names)]
    command += ["--small"] if options.small else []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True
    )
    said: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    stdout = process.stdout
    reader = threading.Thread(target=_pass_on, args=(stdout, said), daemon=True)
    reader.start()
    current, limit, done = names[0], STARTING, 0
    try:
        while done < len(names):
            text = said.get(timeout=limit * options.patience)
            if not text:
                yield {"check": current, "ok": False, "error": f"ended with {process.wait()}"}
                return
            line = json.loads(text)
            if "begins" in line:
                current = line["begins"]
                limit = CHECKS[current][1]
                continue
            done += 1
            yield line
            current, limit = names[min(done, len(names) - 1)], STARTING
    except queue.Empty:
        yield {
            "check": current,
            "ok": False,
            "error": f"more than {limit * options.patience:.0f} s",
        }
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and whatever it has started
        process.wait()
        reader.join()
        stdout.close()


def _pass_on(stdout: Any, said: "queue.Queue[str]") -> None:
    for text in stdout:
        said.put(text)
    said.put("")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks that are asked for, and return the status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])  # type: ignore[union-attr]
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="sizes of a rehearsal")
    parser.add_argument("--checks", default=",".join(ORDER), help="names, joined by commas")
    parser.add_argument("--output", type=Path, help="a file for the lines")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on all time limits")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = options.checks.split(",")
    unknown = sorted(set(names) - CHECKS.keys())
    if unknown:
        parser.error(f"there is no check {', '.join(unknown)}; there are {', '.join(ORDER)}")
    if options.inside is not None:
        run_here(names, Bench(torch.device(options.device), options.small, options.inside))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return report(lines_of(names, options, Path(folder)), options.output)


def report(lines: Iterator[Line], output: Path | None) -> int:
    """Print lines as they come, and what they come to; the status is 1 if one has failed."""
    start, failed, lacking, count = time.perf_counter(), [], [], 0
    with contextlib.ExitStack() as stack:
        file = None if output is None else stack.enter_context(output.open("w"))

        def say(line: Line) -> None:
            print(text := json.dumps(line), flush=True)
            if file is not None:
                print(text, file=file, flush=True)

        for line in lines:
            say(line)
            count += 1
            failed += [] if line["ok"] else [line["check"]]
            lacking += [line["check"]] if "not_applicable" in line else []
        seconds = round(time.perf_counter() - start, 1)
        say({"checks": count, "failed": failed, "not_applicable": lacking, "seconds": seconds})
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
