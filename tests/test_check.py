"""``python -m duquant.check``: a host that computes the model agrees, every other one differs."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from duquant import check
from duquant.config import Recipe
from duquant.export.conversion import QuantizedSource, export_model
from duquant.export.first_tokens import LOGITS, draw_prompts, padded, read_first_tokens
from duquant.export.targets.native import Native
from duquant.modules.variants import round_to_nearest
from tests.block_by_block import small_recipe
from tests.quantized_directory import QuantizedDirectory, write_quantized
from tests.tiny_models import FAMILIES, VOCABULARY

FAMILY = FAMILIES["qwen2"]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> QuantizedDirectory:
    return write_quantized(tmp_path_factory.mktemp("check"), FAMILY)


def run(capsys: pytest.CaptureFixture[str], *options: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        check.main([str(option) for option in options])
    printed = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, printed.out, printed.err


def as_json(capsys: pytest.CaptureFixture[str], *options: object) -> dict[str, Any]:
    status, out, _ = run(capsys, *options, "--json")
    record: dict[str, Any] = json.loads(out)
    assert status == (0 if record["agrees"] else 1)
    return record


def test_this_host_agrees(
    quantized: QuantizedDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, quantized.path, "--backend", "reference")
    assert status == 0
    assert out.endswith("this host computes the model: 16 of 16 prompts agree within 0.001\n")
    assert max(as_json(capsys, quantized.path, "--backend", "integer")["differences"]) < 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_are_checked_in_float32(
    dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = write_quantized(tmp_path, FAMILY, dtype=dtype)
    record = as_json(capsys, half.path, "--backend", "reference")
    assert record["agreeing"] == 16
    with torch.no_grad():
        ids, last = padded(read_first_tokens(half.path).prompts)
        logits = half.load()(ids).logits[torch.arange(16), last].double()
    stored = read_first_tokens(half.path)
    ours = logits.log_softmax(-1).gather(-1, torch.tensor(stored.tokens))
    far = (ours - torch.tensor(stored.log_probabilities)).abs().amax(-1)
    agreeing = int((far <= check.LARGEST_DIFFERENCE).sum())
    assert agreeing < check.FEWEST_AGREEING * len(far), "half precision passes for float32"


@pytest.mark.parametrize(
    "other",
    [
        round_to_nearest(small_recipe()),
        replace(small_recipe(), key_bits=16),
        replace(small_recipe(), value_bits=8),
        replace(small_recipe(), activation_bits=8, query_bits=4, key_bits=4, value_bits=4),
    ],
    ids=["no transform", "K not quantized", "V of 8 bits", "activations of 8 bits"],
)
def test_any_other_model_differs(
    other: Recipe,
    quantized: QuantizedDirectory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = write_quantized(tmp_path, FAMILY, other)
    found = check.by_transformers(wrong.path, read_first_tokens(quantized.path))
    differences = check.largest_differences(read_first_tokens(quantized.path), found)
    assert not check.agrees(differences)
    assert min(differences) > 10 * check.LARGEST_DIFFERENCE


def test_prompts_are_the_same_for_everyone(quantized: QuantizedDirectory) -> None:
    prompts = draw_prompts(VOCABULARY, 64)
    assert prompts == read_first_tokens(quantized.path).prompts
    assert prompts[0] == [44, 9]
    assert {len(prompt) for prompt in draw_prompts(VOCABULARY, 3)} == {2, 3}
    assert {token for prompt in draw_prompts(2, 64) for token in prompt} == {0, 1}


def test_a_native_copy_brings_its_numbers(
    quantized: QuantizedDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(QuantizedSource(quantized.path), tmp_path / "copy", Native())
    assert (tmp_path / "copy" / LOGITS).read_bytes() == (quantized.path / LOGITS).read_bytes()
    assert as_json(capsys, tmp_path / "copy")["agrees"]


def test_bad_input_is_one_line(
    quantized: QuantizedDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(quantized.path, tmp_path / "copied"))
    content = json.loads((copied / LOGITS).read_text())

    def complaint(*options: object) -> str:
        status, out, err = run(capsys, *options)
        assert (status, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    content["log_probabilities"][0][0] -= 1
    (copied / LOGITS).write_text(json.dumps(content))
    assert "first tokens are not those that were stored" in complaint(copied)
    content["tokens"][0].pop()
    (copied / LOGITS).write_text(json.dumps(content))
    assert "do not belong together" in complaint(copied)
    (copied / LOGITS).unlink()
    assert "export --run RUN --to native" in complaint(copied)
    nowhere = complaint(tmp_path / "nowhere")
    assert "nowhere is no directory" in nowhere
    assert "earlier release" not in nowhere
    assert "invalid choice: 'fast'" in complaint(copied, "--backend", "fast")
    shutil.copy(quantized.path / LOGITS, copied)
    block = copied / "model-block-00000.safetensors"
    damaged = bytearray(block.read_bytes())
    damaged[-1] ^= 1
    block.write_bytes(damaged)
    assert "block 0 of the quantized model: damaged or altered" in complaint(copied)


def fake_vllm(quantized: QuantizedDirectory, shift: float) -> dict[str, ModuleType]:
    """Modules that answer as vLLM would, from the numbers that transformers finds."""
    found = check.by_transformers(quantized.path, read_first_tokens(quantized.path))

    ids, last = padded(read_first_tokens(quantized.path).prompts)

    class LLM:
        def __init__(self, model: str, **options: object) -> None:
            assert model == str(quantized.path)
            assert options["dtype"] == "float32"
            assert options["additional_config"] == {
                "duquant_backend": "auto",
                "duquant_exact": True,
            }

        def generate(self, prompts: list[dict[str, list[int]]], asked: object) -> list[Any]:
            print("INFO: what vLLM says", os.environ["VLLM_LOGGING_STREAM"])
            assert [p["prompt_token_ids"] for p in prompts] == ids.tolist()
            return list(map(answer, found, last.tolist()))

    def answer(numbers: dict[int, float], place: int) -> Any:
        row = {token: SimpleNamespace(logprob=each + shift) for token, each in numbers.items()}
        rows: list[Any] = [None, *({} for _ in range(ids.shape[1]))]
        rows[place + 1] = row
        return SimpleNamespace(
            prompt_logprobs=rows[:-1], outputs=[SimpleNamespace(logprobs=[rows[-1]])]
        )

    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, dict
    platforms: Any = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: True)
    return {"vllm": module, "vllm.platforms": platforms}


def pretend(monkeypatch: pytest.MonkeyPatch, modules: dict[str, ModuleType]) -> None:
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_vllm_is_compared_likewise(
    quantized: QuantizedDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("VLLM_LOGGING_STREAM", raising=False)
    pretend(monkeypatch, fake_vllm(quantized, 0.0))
    assert as_json(capsys, quantized.path, "--vllm")["agreeing"] == 16
    pretend(monkeypatch, fake_vllm(quantized, 0.01))
    status, out, err = run(capsys, quantized.path, "--vllm")
    assert status == 1
    assert "THIS HOST DIFFERS: 0 of 16 prompts agree" in out
    assert "INFO" not in out
    assert "INFO: what vLLM says ext://sys.stderr" in err
    monkeypatch.setitem(sys.modules, "vllm", None)
    status, _, err = run(capsys, quantized.path, "--vllm")
    assert status == 2
    assert 'pip install "duquant[vllm]"' in err


def test_a_token_that_vllm_does_not_give_is_no_agreement(quantized: QuantizedDirectory) -> None:
    stored = read_first_tokens(quantized.path)
    missing: check.Found = [{} for _ in stored.prompts]
    assert check.largest_differences(stored, missing) == [float("inf")] * 16
    nothing = [dict.fromkeys(tokens, float("nan")) for tokens in stored.tokens]
    assert not check.agrees(check.largest_differences(stored, nothing))
