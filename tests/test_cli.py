"""The command line: every bad input ends in one line, every configuration parses."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import cli
from duquant.config import Recipe
from duquant.quickstart import MODEL_DIRECTORY
from tests.assets import REPOSITORY
from tests.parsed_command import parsed
from tests.small_run import arguments, run_anew, write_small_model
from tests.tiny_models import REFUSED, write_tiny_model

CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
Outcome = tuple[int, str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("model"), blocks=1)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run the command line in this process; returns exit status and standard error."""

    def call(*options: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cli.py", *options])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return call


def assert_refused(outcome: Outcome, words: list[str], output: Path) -> None:
    status, message = outcome
    assert status == 2
    assert message.startswith("error: ")
    assert message.count("\n") == 1, message
    for word in words:
        assert word in message
    assert not output.exists(), "nothing may be written"


BAD_OPTIONS = {
    "block size": (
        ["--model.rotation.block_size", "40"],
        ["block_size 40", "input width 64", "self_attn.q_proj", "16, 32"],
    ),
    "group size": (["--model.group_size", "48"], ["group_size 48", "width 64", "16, 32"]),
    "few bits": (["--model.weight_bits", "1"], ["weight_bits is 1", "2 to 16"]),
    "many bits": (["--model.activation_bits", "17"], ["activation_bits is 17", "2 to 16"]),
    "key bits": (["--model.key_bits", "0"], ["key_bits is 0"]),
    "ratio with LWC": (
        ["--model.clipping.weight_ratio", "0.8"],
        ["weight_ratio is 0.8", "lwc.epochs to 0"],
    ),
    "selector": (["--model.rotation.selector", "best"], ["selector", "best", "outlier"]),
    "hadamard": (
        ["--model.rotation.selector", "hadamard", "--model.rotation.block_size", "48"],
        ["48", "power of two"],
    ),
    "unknown key": (["--model.colour", "blue"], ["--model.colour"]),
    "beginning of a key": (["--model.lwc.epoch", "2"], ["--model.lwc.epoch"]),
    "not a number": (["--model.weight_bits", "four"], ["weight_bits", "four"]),
    "long sequence": (["--data.sequence_length", "65"], ["sequence_length is 65", "64 positions"]),
    "too many samples": (
        ["--data.num_samples", "10000000"],
        ["num_samples is 10000000", "room for"],
    ),
    "no samples": (["--data.num_samples", "0"], ["num_samples is 0"]),
    "missing text": (["--data.calibration", "nowhere.txt"], ["nowhere.txt", "wikitext2"]),
    "text suffix": (["--data.calibration", "cli.py"], ["cli.py", ".parquet", "'.py'"]),
    "validation without a name": (
        ["--data.validation", "my_test.txt"],
        ["data.validation must be a mapping of names to texts, {mine: my_test.txt}\n"],
    ),
    "validation by a list": (["--data.validation", "[a.txt, b.txt]"], ["must be a mapping"]),
    "missing checkpoint": (
        ["--ckpt_path", "nowhere.ckpt"],
        ["there is no checkpoint nowhere.ckpt"],
    ),
    "no checkpoint at all": (["--ckpt_path", "cli.py"], ["cli.py is damaged or not"]),
    "missing model": (["--model.pretrained", "./nowhere"], ["no model directory ./nowhere"]),
    "some batches": (
        ["--trainer.limit_train_batches", "0.5"],
        ["limit_train_batches is 0.5;", "must be 1.0", "data.num_samples"],
    ),
    "half precision": (
        ["--trainer.precision", "bf16-true"],
        ["precision is bf16-true", "must be 32-true", "model.dtype"],
    ),
    "clipped gradients": (
        ["--trainer.gradient_clip_val", "0.5"],
        ["gradient_clip_val is 0.5", "must be 0", "model.lwc.learning_rate"],
    ),
    "accumulated gradients": (
        ["--trainer.accumulate_grad_batches", "2"],
        ["accumulate_grad_batches is 2", "must be 1", "model.lwc.batch_size"],
    ),
    "epochs of the trainer": (
        ["--trainer.max_epochs", "3"],
        ["trainer.max_epochs is 3, which has no effect", "set model.lwc.epochs"],
    ),
    "pruned weights": (
        [
            "--trainer.callbacks+=lightning.pytorch.callbacks.ModelPruning",
            "--trainer.callbacks.pruning_fn=l1_unstructured",
        ],
        ["trainer.callbacks has a ModelPruning: it may change weights"],
    ),
    "two processes without a strategy": (
        ["--trainer.devices", "2", "--trainer.accelerator", "cpu"],
        ["trainer.strategy must be ddp with 2 processes", "trainer.devices"],
    ),
    "an accelerator without its library": (
        ["--trainer.accelerator", "tpu"],
        ["trainer: Requirement 'torch_xla", "pip install"],
    ),
    "a logger without its library": (
        ["--trainer.logger", "WandbLogger"],
        ["loggers.WandbLogger needs what is not installed: pip install -U 'wandb"],
    ),
    "early stopping on nothing": (
        [
            "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
            "--trainer.callbacks.monitor=nowhere",
        ],
        ["EarlyStopping on the metric nowhere", "lwc/loss alone"],
    ),
    "samples that cannot be shared": (
        ["--trainer.strategy", "ddp", "--trainer.devices", "3", "--trainer.accelerator", "cpu"],
        ["data.num_samples is 8", "a multiple of 3", "trainer.devices"],
    ),
    "model is a file": (["--model.pretrained", "cli.py"], ["cli.py is a file"]),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_option_is_one_line(
    case: str, model: Path, tmp_path: Path, command: Callable[..., Outcome]
) -> None:
    options, words = BAD_OPTIONS[case]
    output = tmp_path / "run"
    assert_refused(command("fit", *arguments(model, output, *options)), words, output)


def test_unknown_key_in_a_file(
    model: Path, tmp_path: Path, command: Callable[..., Outcome]
) -> None:
    config = tmp_path / "typo.yaml"
    config.write_text("model:\n  weight_bit: 4\n")
    output = tmp_path / "run"
    outcome = command("fit", "-c", str(config), *arguments(model, output))
    assert_refused(outcome, ["weight_bit"], output)


def test_tasks_of_slurm_that_are_no_processes_of_a_node(
    model: Path,
    tmp_path: Path,
    command: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NAME", "job")
    output = tmp_path / "run"
    outcome = command("fit", *arguments(model, output))
    assert_refused(outcome, ["--ntasks=4", "--ntasks-per-node=4"], output)


def test_text_shorter_than_a_window(
    model: Path, tmp_path: Path, command: Callable[..., Outcome]
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("A short text.")
    output = tmp_path / "run"
    for option in ("--data.calibration", "--data.validation"):
        value = str(text) if option.endswith("calibration") else f"{{short: {text}}}"
        outcome = command("fit", *arguments(model, output, option, value))
        assert_refused(outcome, ["tokens", "sequence_length"], output)


def test_no_model_at_all(tmp_path: Path, command: Callable[..., Outcome]) -> None:
    output = tmp_path / "run"
    outcome = command("fit", "-c", "configs/w4a4.yaml", "--output_dir", str(output))
    assert_refused(outcome, ["model.pretrained must be a model directory or a hub id\n"], output)


@pytest.mark.parametrize("family", ["gemma2", "mixtral", "phi3"])
def test_unknown_family_names_the_modules(
    family: str, tmp_path: Path, command: Callable[..., Outcome]
) -> None:
    directory = write_tiny_model(tmp_path / "model", REFUSED[family])
    output = tmp_path / "run"
    outcome = command("fit", *arguments(directory, output))
    assert_refused(outcome, ["not a block duquant can transform"], output)


@pytest.mark.parametrize("damage", ["truncated", "pickle"])
def test_unusable_weights(damage: str, tmp_path: Path, command: Callable[..., Outcome]) -> None:
    directory = write_small_model(tmp_path / "model", blocks=1)
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:1000])
    if damage == "pickle":
        weights.rename(directory / "pytorch_model.bin")
    output = tmp_path / "run"
    outcome = command("fit", *arguments(directory, output))
    named = "model.safetensors" if damage == "truncated" else "pytorch_model.bin"
    assert_refused(outcome, [named], output)


def test_no_disk_space(
    model: Path,
    tmp_path: Path,
    command: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    output = tmp_path / "run"
    outcome = command("fit", *arguments(model, output))
    assert_refused(outcome, ["the run needs about", "1.0 MB are free"], output)


def test_output_of_another_kind(
    model: Path, tmp_path: Path, command: Callable[..., Outcome]
) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    status, message = command("fit", *arguments(model, tmp_path))
    assert status == 2
    assert "not empty and not a run" in message
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_validate_without_a_run(
    model: Path, tmp_path: Path, command: Callable[..., Outcome]
) -> None:
    output = tmp_path / "run"
    outcome = command("validate", *arguments(model, output))
    assert_refused(outcome, ["holds no run"], output)


def test_mistakes_end_a_real_process_with_status_2(model: Path, tmp_path: Path) -> None:
    refused = run_anew("fit", *arguments(model, tmp_path / "run", "--model.weight_bits", "99"))
    outcome = (refused.returncode, refused.stderr)
    assert_refused(outcome, ["weight_bits is 99"], tmp_path / "run")
    assert refused.stdout == ""


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_parses(config: Path) -> None:
    """Every file of configs/ is accepted, together with a recipe where it names a model only."""
    recipe = REPOSITORY / "configs" / "w4a4_lwc.yaml"
    options = ["-c", str(config), *(["-c", str(recipe)] if config.parent.name == "models" else [])]
    if "pretrained" not in yaml.safe_load(config.read_text())["model"]:
        options += ["--model.pretrained", str(MODEL_DIRECTORY)]
    model = parsed("fit", *options)["model"]
    values = {key: model[key] for key in Recipe.__dataclass_fields__}
    assert Recipe.from_dict(values).weight_bits <= 16


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_line_of_a_configuration_says_what_it_does(config: Path) -> None:
    for line in config.read_text().splitlines():
        is_value = ":" in line and not line.rstrip().endswith(":")
        assert line.startswith("#") or not is_value or "# " in line, line
