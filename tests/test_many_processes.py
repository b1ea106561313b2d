"""A calibration in two processes: the model of one process; killed, it ends and continues.

Two "machines" are two processes on this one that find each other as machines do.
"""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import cli
from callbacks.block_events import BlockRecord
from duquant.json_files import read_json
from tests.assets import REPOSITORY
from tests.forked_process import ForkedProcess
from tests.in_process import LIGHTNING_WARNINGS, write_text
from tests.small_run import arguments, one_thread, run, start, stored_tensors, write_small_model

pytestmark = LIGHTNING_WARNINGS
BLOCKS = 3
DDP = ("--trainer.accelerator", "cpu", "--trainer.strategy", "ddp")
TWO = (*DDP, "--trainer.devices", "2")
PATIENCE = 300.0
"""Seconds; only a job that hangs needs them."""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All that runs have in common but their directory."""
    directory = tmp_path_factory.mktemp("inputs")
    text = write_text(directory / "text.txt")
    model = write_small_model(directory / "model", blocks=BLOCKS)
    texts = ["--data.calibration", str(text), "--data.validation", f"{{topics: {text}}}"]
    return arguments(model, "", *texts)


@pytest.fixture(scope="module")
def alone(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process, this one."""
    output = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patched:
        command = ["cli.py", "fit", *options, "--trainer.accelerator", "cpu"]
        patched.setattr(sys, "argv", [*command, "--output_dir", str(output)])
        cli.main()
    return output


@pytest.fixture(scope="module")
def two_machines(
    options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list["subprocess.CompletedProcess[str]"]]:
    """The same run on two machines, and what each of them printed."""
    output = tmp_path_factory.mktemp("two") / "run"
    return output, run_on_two_machines(*options, "--output_dir", str(output))


def run_on_two_machines(*command: str) -> list["subprocess.CompletedProcess[str]"]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = (*command, *DDP, "--trainer.num_nodes", "2")
    machines = [start("fit", *command, **meeting, NODE_RANK=rank) for rank in ("0", "1")]
    printed = [machine.communicate(timeout=PATIENCE) for machine in machines]
    return [
        subprocess.CompletedProcess(machine.args, machine.wait(), *texts)
        for machine, texts in zip(machines, printed, strict=True)
    ]


def integers(packed: torch.Tensor) -> torch.Tensor:
    """Two of them lie in a byte."""
    return torch.stack([packed & 15, packed >> 4])


def test_two_processes_give_the_model_of_one(
    alone: Path, two_machines: tuple[Path, list["subprocess.CompletedProcess[str]"]]
) -> None:
    """Equal decisions; LWC differs by the order in which two gradients are added.

    Their last bits can turn the rounding of an activation, and training passes that on: between no
    integer and 2 % of them differed, depending on the text. Where activations are not rounded all
    are equal, and without LWC so is every bit: ``tests/callbacks/test_data_parallel.py``.
    """
    output, (first, second) = two_machines
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    expected, tensors = stored_tensors(alone), stored_tensors(output)
    assert tensors.keys() == expected.keys()
    differing = total = 0
    for name, tensor in tensors.items():
        if name.endswith("packed"):
            differing += int((integers(tensor) != integers(expected[name])).sum())
            total += 2 * tensor.numel()
        elif not name.endswith(("scale", "zero")):
            assert torch.equal(tensor, expected[name]), name
    assert differing <= 0.1 * total
    assert any(name.endswith("rotations") for name in tensors)
    ours, theirs = (BlockRecord.load_all(run, BLOCKS) for run in (output, alone))
    for one, other in zip(ours, theirs, strict=True):
        assert one.sites == other.sites, "peaks before and after the transforms"
        assert one.lwc_losses == pytest.approx(other.lwc_losses, rel=0.05)
    assert ours[0].lwc_losses[0] == pytest.approx(theirs[0].lwc_losses[0], rel=1e-6)


def test_two_processes_distil_the_same_model(
    options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each has half of every batch, gradients are averaged. Without LWC their blocks are equal."""
    directory = tmp_path_factory.mktemp("distilled")
    whole_model = ["--model.distillation.epochs", "2", "--model.distillation.batch_size", "2"]
    command = [*options, *whole_model, "--data.validation", "{}", "--model.lwc.epochs", "0"]
    finished = [run("fit", *command, "--output_dir", str(directory / "one"), *DDP[:2])]
    finished += run_on_two_machines(*command, "--output_dir", str(directory / "two"))
    assert [each.returncode for each in finished] == [0, 0, 0], finished[-1].stderr
    one, two = (
        BlockRecord.load_all(directory / name, BLOCKS + 1)[BLOCKS] for name in ("one", "two")
    )
    assert len(one.lwc_losses) == 2
    assert two.lwc_losses == pytest.approx(one.lwc_losses, rel=0.02)


def test_only_the_first_machine_writes_and_speaks(
    alone: Path, two_machines: tuple[Path, list["subprocess.CompletedProcess[str]"]]
) -> None:
    output, (first, second) = two_machines
    assert "Perplexity of" in first.stdout
    assert first.stderr.count("finished in") == BLOCKS
    assert second.stdout.strip() == second.stderr.strip() == ""
    files = [
        {str(file.relative_to(run)) for file in run.rglob("*") if "tensorboard" not in file.parts}
        for run in (output, alone)
    ]
    assert files[0] == files[1]
    perplexities = [
        read_json(run / "summary.json")["perplexity"]["topics"] for run in (output, alone)
    ]
    assert perplexities[0]["full_precision"] == pytest.approx(
        perplexities[1]["full_precision"], rel=1e-6
    )
    assert perplexities[0]["quantized"] == pytest.approx(perplexities[1]["quantized"], rel=0.05)


def children(process: int) -> list[int]:
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
    rows = [tuple(map(int, line.split())) for line in table.stdout.splitlines()]
    return [pid for pid, parent in rows if parent == process]


def wait_for(file: Path, process: ForkedProcess) -> None:
    while not file.is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_a_killed_process_ends_the_job_which_continues_bit_identical(
    options: list[str],
    two_machines: tuple[Path, list["subprocess.CompletedProcess[str]"]],
    tmp_path: Path,
) -> None:
    """Two processes of one machine: where they run makes no difference either."""
    command = [*options, "--output_dir", str(tmp_path / "run"), *TWO]
    process = start("fit", *command)
    wait_for(BlockRecord.path(tmp_path / "run", 0), process)
    (victim,) = children(process.pid)
    subprocess.run(["kill", f"-{signal.SIGKILL:d}", str(victim)], check=True)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert said.count("\nerror: ") == 1, said
    assert "the same command with --ckpt_path last continues" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "summary.json").exists()
    finished = run("fit", *command, "--ckpt_path", "last")
    assert finished.returncode == 0, finished.stderr
    assert "continuing at block" in finished.stderr
    expected = stored_tensors(two_machines[0])
    for name, tensor in stored_tensors(tmp_path / "run").items():
        assert torch.equal(tensor, expected[name]), name


def test_an_error_of_one_process_is_one_message(options: list[str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start("fit", *options, "--output_dir", str(output), *TWO)
    wait_for(output / "run.json", process)
    (output / "streams").mkdir()
    (output / "streams" / "process_1_of_2").write_text("where process 1 wants a folder")
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert said.count("\nerror: ") == 1, said
    assert "process_1_of_2" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("how", "number"),
    [("collective", signal.SIGKILL), ("deaf", signal.SIGKILL), ("collective", signal.SIGSTOP)],
    ids=["noticed by gloo", "as NCCL waits", "as if a machine lost power"],
)
def test_a_process_of_another_machine_that_is_gone_ends_the_job(
    how: str, number: signal.Signals
) -> None:
    """Nobody here started it, and it is not process 0, whose store would be gone with it."""
    script = str(REPOSITORY / "tests" / "watched_pair.py")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    first, second = (
        ForkedProcess([script, rank, how], {**one_thread(), **meeting}) for rank in ("0", "1")
    )
    assert [each.stdout.readline() for each in (first, second)] == ["waits\n"] * 2
    second.send_signal(number)
    _, said = first.communicate(timeout=PATIENCE)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    assert first.returncode == 2, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: lost the connection to another process of this job; "
        "the same command with --ckpt_path last continues"
    ], said
    assert "Traceback" not in said
