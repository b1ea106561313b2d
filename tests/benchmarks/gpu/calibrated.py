"""Whole calibrations on the device, and the models that they give."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import duquant
from tests.assets import REPOSITORY
from tests.benchmarks.gpu.bench import Bench, Figures, check


def apart(one: Path, other: Path) -> Figures:
    """How far the tensors of two models are from each other."""
    figures = {"permutations_differing": 0, "rotations": 0.0, "codes_share": 0.0, "scales": 0.0}
    for file in sorted(one.glob("model-block-*.safetensors")):
        ours, theirs = load_file(file), load_file(other / file.name)
        for name, tensor in ours.items():
            differs = (tensor != theirs[name]).float().mean().item()
            if name.endswith("permutations"):
                figures["permutations_differing"] += differs > 0
            elif name.endswith("packed"):
                figures["codes_share"] = max(figures["codes_share"], differs)
            elif name.endswith(("rotations", ".scale")):
                kind = "rotations" if name.endswith("rotations") else "scales"
                most = float((tensor.float() - theirs[name].float()).abs().max())
                figures[kind] = max(figures[kind], most)
    return figures


@check(60)
def same_decisions_without_lwc(bench: Bench) -> Figures:
    """As on the CPU; sums differ in their last bits, and a few codes with them."""
    figures = apart(
        bench.quantized("cpu", "cpu", epochs=0), bench.quantized("plain", bench.device, epochs=0)
    )
    is_close = figures["permutations_differing"] <= 2 and figures["codes_share"] < 0.2
    return {"ok": is_close, **figures}


@check(60)
def lwc_twice_is_bit_identical(bench: Bench) -> Figures:
    """Two trainings on one device; attention is plain products, in half precision not on CUDA."""
    figures: Figures = {"ok": True}
    for dtype in ("float32", "bfloat16"):
        first, second = (
            bench.quantized(f"{dtype}, {which}", bench.device, epochs=2, dtype=dtype)
            for which in ("once", "again")
        )
        figures[dtype] = apart(first, second)
        figures["ok"] &= not any(figures[dtype].values())
    return figures


@check(60)
def bfloat16_and_float16(bench: Bench) -> Figures:
    """Calibrated and run in half precision."""
    figures: Figures = {"ok": True}
    for dtype in ("bfloat16", "float16"):
        path = bench.quantized(dtype, bench.device, epochs=1, dtype=dtype)
        model = AutoModelForCausalLM.from_pretrained(path, device_map={"": bench.device})
        with torch.no_grad():
            logits = model(torch.arange(48, device=bench.device).view(1, -1)).logits
        is_right = bool(torch.isfinite(logits).all()) and str(logits.dtype) == f"torch.{dtype}"
        figures[dtype] = {"finite_in_its_dtype": is_right}
        figures["ok"] &= is_right
    return figures


@check(60)
def load_run_generate(bench: Bench) -> Figures:
    """Both backends, a packed cache, beams, and saving."""
    path, ids = bench.quantized("plain", bench.device, epochs=0), torch.arange(5, 45).view(1, -1)
    here = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    duquant.set_execution(here, "reference")
    model: Any = _loaded(path, bench)
    elsewhere = [n for n, b in model.named_buffers() if b.device.type != bench.device.type]
    figures: Figures = {"buffers_elsewhere": elsewhere}
    with torch.no_grad():
        expected = here(ids).logits
        for backend in ("reference", "auto"):
            duquant.set_execution(model, backend)  # type: ignore[arg-type]
            found = model(ids.to(bench.device)).logits.float().cpu()
            same = float((found.argmax(-1) == expected.argmax(-1)).float().mean())
            figures[backend] = {"apart": float((found - expected).abs().max()), "same": same}

    def written(**options: Any) -> list[list[int]]:
        settings = {"max_new_tokens": 4 if bench.small else 12, "do_sample": False, **options}
        tokens: list[list[int]] = model.generate(ids.to(bench.device), **settings).tolist()
        return tokens

    plain = written()
    figures["packed_cache_equal"] = written(past_key_values=duquant.PackedCache(model)) == plain
    figures["beams"] = len(written(num_beams=2)[0])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        again = _loaded(folder, bench)(ids.to(bench.device)).logits
        figures["saved_equal"] = torch.equal(again, model(ids.to(bench.device)).logits)
    agree = all(figures[backend]["same"] > 0.9 for backend in ("reference", "auto"))
    equal = figures["packed_cache_equal"] and figures["saved_equal"]
    return {"ok": not elsewhere and equal and agree, **figures}


@check(60)
def static_cache(bench: Bench) -> Figures:
    """The cache of a fixed size gives the tokens of the one that grows."""
    model = _loaded(bench.quantized("plain", bench.device, epochs=0), bench)
    ids = torch.arange(5, 45, device=bench.device).view(1, -1)
    options = {"max_new_tokens": 4 if bench.small else 8, "do_sample": False}
    fixed = {"cache_implementation": "static", "disable_compile": True}
    return {
        "ok": torch.equal(model.generate(ids, **options), model.generate(ids, **options, **fixed))
    }


@check(120)
def quickstart_on_the_device(bench: Bench) -> Figures:
    """README's first command."""
    output = bench.folder / "run"
    command = [*bench.command, "fit", "-c", "configs/quickstart.yaml"]
    command += ["--trainer.accelerator", bench.device.type, "--output_dir", str(output)]
    if bench.small:
        command += ["--model.rotation.max_steps", "4", "--model.lwc.epochs", "1"]
        command += ["--data.num_samples", "2", "--data.sequence_length", "32"]
        command += ["--data.validation_windows", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    if done.returncode:
        return {"ok": False, "told": done.stderr[-1500:]}
    summary = json.loads((output / "summary.json").read_text())
    return {"ok": True, "perplexity": summary["perplexity"]}


def _loaded(path: Path | str, bench: Bench) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, device_map={"": bench.device}
    )
