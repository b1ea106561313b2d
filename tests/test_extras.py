"""The core alone loads and runs; what needs an extra says which."""

import os
import subprocess
import sys
import time
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch

import cli
import duquant
from duquant import extras
from duquant.extras import EXTRAS, MissingExtraError, require_extra
from tests.assets import REPOSITORY
from tests.lean_environment import Distribution, build_wheel, install_alone, required, start_in
from tests.quantized_directory import QuantizedDirectory, write_quantized
from tests.tiny_models import FAMILIES

GENERATE = """
import torch; torch.set_num_threads(1)
import duquant; from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.tensor([[5, 6, 7, 8]])
cache = duquant.PackedCache(model)
print(model.generate(ids, past_key_values=cache, max_new_tokens=6, do_sample=False)[0].tolist())
print([name for name in sys.argv[2:] if name in sys.modules])
try:
    duquant.quantize
except ImportError as error:
    print(error)
"""
COMMAND = f"""
sys.path.insert(0, {str(REPOSITORY)!r})
runpy.run_path({str(REPOSITORY / "cli.py")!r}, run_name="__main__")
"""
HEAVY = (*EXTRAS["calibrate"], *EXTRAS["evaluate"])
IS_ASKED_FOR = "DUQUANT_REAL_INSTALL"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_alone(wheel, tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> QuantizedDirectory:
    return write_quantized(tmp_path_factory.mktemp("model"), FAMILIES["llama-grouped"])


def generated(quantized: QuantizedDirectory) -> str:
    model = quantized.load()
    options = {"past_key_values": duquant.PackedCache(model), "do_sample": False}
    ids = model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=6, **options)
    return str(ids[0].tolist())


def test_the_wheel_alone_generates(core: Path, quantized: QuantizedDirectory) -> None:
    process = start_in(core, GENERATE, str(quantized.path), *HEAVY)
    tokens, imported, missing = process.stdout.splitlines()
    assert tokens == generated(quantized), process.stderr
    assert imported == "['jinja2']"  # which PyTorch brings and transformers imports
    assert missing.endswith('pip install "duquant[calibrate]"')


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ([], "calibrate"),
        (["fit"], "calibrate"),
        (["evaluate", "--run", "runs/a"], "evaluate"),
        (["mtbench", "answer"], "evaluate"),
        (["--help"], "calibrate"),
    ],
)
def test_the_command_line_says_what_to_install(
    arguments: list[str], extra: str, core: Path
) -> None:
    process = start_in(core, COMMAND, *arguments)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line == (
        f'error: cli.py needs lightning, which is not installed: pip install "duquant[{extra}]"'
    )


@pytest.mark.parametrize("subcommand", ["evaluate", "mtbench"])
def test_a_subcommand_says_which_extra_it_needs(
    subcommand: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(extras.EXTRAS, "evaluate", ("torch", "no_such_module"))
    options = {"evaluate": ["--model", "x"], "mtbench": ["show", "--models", "x"]}[subcommand]
    monkeypatch.setattr(sys, "argv", ["cli.py", subcommand, *options])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: cli.py {subcommand} needs no_such_module, which is not installed: "
        'pip install "duquant[evaluate]"\n'
    )


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_installs_what_is_looked_for(extra: str, core: Path) -> None:
    (metadata,) = core.glob("duquant-*.dist-info")
    installed = set(required(Distribution.at(metadata), [extra], {}))
    owners = packages_distributions()
    for module in EXTRAS[extra]:
        assert installed & {name.lower().replace("_", "-") for name in owners[module]}, module
    require_extra(extra, "a test")


def test_what_is_missing_is_no_plain_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "calibrate", ("no_such_module",))
    with pytest.raises(MissingExtraError, match=r"duquant.quantize needs no_such_module"):
        _ = duquant.quantize


@pytest.mark.skipif(
    IS_ASKED_FOR not in os.environ,
    reason=f"it downloads PyTorch, which takes minutes; {IS_ASKED_FOR}=1 asks for it",
)
def test_the_wheel_in_an_empty_environment(
    wheel: Path, quantized: QuantizedDirectory, tmp_path: Path
) -> None:
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    python = str(tmp_path / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "-c", REPOSITORY / "constraints.txt", wheel]
    subprocess.run(install, check=True)
    print(f"installed in {time.monotonic() - began:.0f} s")
    process = subprocess.run(
        [python, "-I", "-c", "import sys\n" + GENERATE, quantized.path, *HEAVY],
        text=True,
        capture_output=True,
    )
    assert process.stdout.splitlines()[0] == generated(quantized), process.stderr
