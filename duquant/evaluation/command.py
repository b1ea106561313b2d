"""``python cli.py evaluate``: tasks, MMLU and perplexities of one model, or of two side by side.

Everything that can be wrong is found first: names, files, tokenizer, texts. Then every task is
measured alone and written down, so the same command continues after an interruption.
"""

from pathlib import Path
from typing import Literal

from rich.console import Console

from duquant.nn.execution import Backend

DEFAULT_SEED = 1234
"""lm-eval's own."""


def evaluate(
    model: str | None = None,
    run: str | None = None,
    config: str | None = None,
    ckpt_path: Literal["last"] | None = None,
    compare: str | None = None,
    tasks: str = "",
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    data_dir: str | None = None,
    tasks_dir: str | None = None,
    mmlu: bool = False,
    mmlu_data_dir: str | None = None,
    perplexity: dict[str, str] | None = None,
    sequence_length: int | None = None,
    stride: int | None = None,
    perplexity_windows: int | None = None,
    tokenizer: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    backend: Backend = "auto",
    device: str = "auto",
    seed: int = DEFAULT_SEED,
    output_dir: str | None = None,
) -> None:
    """Evaluate a model: zero-shot tasks, MMLU and perplexity, beside another one if wanted.

    Args:
        model: model to evaluate: a quantized model directory, a full-precision one, a hub id, or
            "quickstart".
        run: instead of a model, the run directory whose quantized model is evaluated.
        config: the same by the config.yaml of the run, as for validate.
        ckpt_path: a run is evaluated as it was finished, so only "last" makes sense.
        compare: another model, usually the full-precision original, to measure beside it.
        tasks: names separated by commas: any of lm-eval's tasks, groups and tags.
        num_fewshot: examples in every prompt (default: what each task says, else 0).
        limit: items of each task at most, for a taste (default: all).
        batch_size: rows of a batch; auto is what fits.
        data_dir: folder of local files arc_easy.jsonl, arc_challenge.jsonl, hellaswag.jsonl,
            winogrande.jsonl, boolq.jsonl, piqa.jsonl, lambada_openai.jsonl; these tasks then need
            no hub.
        tasks_dir: folder of further task definitions in lm-eval's YAML.
        mmlu: evaluate MMLU: every subject, the four categories, and the mean.
        mmlu_data_dir: folder with the original dev/ and test/ CSV files of MMLU (default: hub).
        perplexity: corpora by name, {wikitext2: file or corpus}; the names c4_joined and c4_drawn
            choose between the two protocols of C4.
        sequence_length: tokens of a perplexity window (default: 2048, or the model's context).
        stride: tokens between two windows (default: sequence_length, no overlap).
        perplexity_windows: windows of each corpus at most (default: all).
        tokenizer: directory or hub id of the tokenizer (default: the model's own).
        dtype: what models compute in; auto is what they are stored in, and float32 on a CPU.
        backend: arithmetic of a quantized model: integer, reference (floating point), or auto.
        device: cpu, cuda, cuda:1, …; auto is the GPU if there is one.
        seed: of few-shot examples and of generated text.
        output_dir: where results go (default: evaluation/ in the run, or runs/evaluation/NAME).
    """
    from duquant.evaluation.evaluation import Evaluation
    from duquant.evaluation.request import Request

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if mmlu_data_dir is not None and not (mmlu or any(name.startswith("mmlu") for name in names)):
        raise ValueError("--mmlu_data_dir is given, but MMLU is not asked for: add --mmlu")
    source, default_output = _find_source(model, run, config, ckpt_path)
    request = Request(
        model=source,
        compare=compare,
        tasks=[*names, *(["mmlu"] if mmlu else [])],
        num_fewshot=num_fewshot,
        limit=limit,
        batch_size=batch_size,
        data_dir=_path(data_dir),
        tasks_dir=_path(tasks_dir),
        mmlu_data_dir=_path(mmlu_data_dir),
        perplexity=perplexity or {},
        sequence_length=sequence_length,
        stride=stride,
        perplexity_windows=perplexity_windows,
        tokenizer=tokenizer,
        dtype=dtype,
        backend=backend,
        device=device,
        seed=seed,
        output_dir=_path(output_dir) or default_output,
    )
    Evaluation(request, Console(stderr=True)).run(Console())


def _find_source(
    model: str | None, run: str | None, config: str | None, ckpt_path: str | None
) -> tuple[str, Path]:
    """The model that is meant, and where its evaluation goes by default."""
    from duquant.evaluation.loaded_model import model_of_run

    if len([value for value in (model, run, config) if value is not None]) != 1:
        raise ValueError("give one of --model, --run and --config (the config.yaml of a run)")
    if model is not None:
        if ckpt_path is not None:
            raise ValueError("--ckpt_path belongs to a run; a model directory has no checkpoint")
        return model, Path("runs") / "evaluation" / Path(model).expanduser().resolve().name
    directory = model_of_run(str(run or config))
    return directory, Path(directory).parent / "evaluation"


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()
