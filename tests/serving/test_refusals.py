"""What vLLM is refused is refused in one line, before an engine is started."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from duquant.serving.exact import require_exact
from tests.quantized_directory import write_quantized
from tests.serving.served import QWEN2, needs_vllm, served
from tests.serving.server import vllm_command, vllm_environment

KERNELS = {"custom_ops": ["none", "+rms_norm"]}
pytestmark = [needs_vllm, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that nobody changes."""
    return write_quantized(tmp_path_factory.mktemp("refused"), QWEN2).path


def refuse(directory: Path, complaint: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=complaint), served(directory, **options):
        pass


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype is fp8"),
        ({"tensor_parallel_size": 3}, "--tensor-parallel-size is 3, .* 2 attention heads"),
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size is 2"),
        ({"enable_lora": True}, "LoRA adapters cannot be served"),
        ({"load_format": "dummy"}, "--load-format is dummy"),
        ({"backend": "fastest"}, "backend is 'fastest'; it must be one of auto, reference"),
        ({"exact": 1}, "duquant_exact is 1; it must be true or false"),
        ({"exact": "true"}, "duquant_exact is 'true'; it must be true or false"),
        ({"exact": True, "dtype": "bfloat16"}, "duquant_exact needs --dtype float32, not bfloat16"),
        ({"exact": True, "compilation_config": KERNELS}, "custom_ops of .* are .*rms_norm"),
        ({"additional_config": {"duquant_exakt": True}}, "duquant_exakt is no option of duquant"),
        ({"hf_overrides": {"rms_norm_eps": 0.5}}, "rms_norm_eps is 0.5; .* quantized with"),
    ],
)
def test_options(options: dict[str, Any], complaint: str, directory: Path) -> None:
    refuse(directory, complaint, **options)


def test_the_exact_mode_is_for_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    config = SimpleNamespace(additional_config={"duquant_exact": True})
    with pytest.raises(ValueError, match=r"is for processors alone, and vLLM runs on cpu"):
        require_exact(config)


@pytest.mark.parametrize("command", ["/usr/bin/vllm", "/x/vllm/entrypoints/openai/api_server.py"])
def test_the_command_ends_with_the_message_alone(
    command: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", [command, str(directory)])
    with pytest.raises(SystemExit) as ended, served(directory, kv_cache_dtype="fp8"):
        pass
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("duquant")]
    assert line.startswith("duquant: --kv-cache-dtype is fp8")


def newer_format(directory: Path) -> None:
    change_config(directory, lambda config: config["quantization_config"].update(format_version=99))


def other_family(directory: Path) -> None:
    change_config(directory, lambda config: config.update(architectures=["GraniteForCausalLM"]))


def moving_rotation(directory: Path) -> None:
    rotation = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    change_config(directory, lambda config: config.update(rope_parameters=rotation))


def altered_tensor(directory: Path) -> None:
    file = directory / "model-block-00001.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.q_proj.packed"][0, 0] ^= 1
    save_file(tensors, file, {"format": "pt"})


def change_config(directory: Path, change: Callable[[Any], None]) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (newer_format, "format version 99; this duquant reads versions"),
        (other_family, "GraniteForCausalLM is not served by vLLM"),
        (moving_rotation, "rope_type dynamic is not served"),
        (altered_tensor, "block 1 of the quantized model: damaged or altered"),
    ],
)
def test_directories(damage: Callable[[Path], None], complaint: str, tmp_path: Path) -> None:
    directory = write_quantized(tmp_path, QWEN2).path
    damage(directory)
    refuse(directory, complaint)


def test_the_server_ends_in_one_line_before_it_starts(tmp_path: Path) -> None:
    directory = write_quantized(tmp_path, QWEN2).path
    altered_tensor(directory)
    command = [vllm_command(), "serve", str(directory), "--skip-tokenizer-init"]
    environment = vllm_environment(tmp_path)
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 2
    *_, last = ended.stderr.splitlines()
    assert last.startswith("duquant: block 1 of the quantized model: damaged or altered")
    assert "Traceback" not in ended.stderr + ended.stdout
