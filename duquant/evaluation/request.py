"""What an evaluation is asked for: the options of ``python cli.py evaluate``, checked."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from duquant.evaluation.options import BatchSize, Dtype
from duquant.evaluation.prompting import Prompting
from duquant.nn.execution import Backend
from duquant.user_paths import user_path

DEFAULT_SEED = 1234
"""lm-eval's own."""


@dataclass(frozen=True)
class EvaluationRequest:
    """Evaluate a model: zero-shot tasks, MMLU and perplexity, beside another one if wanted.

    Args:
        model: model to evaluate: a quantized model directory, a full-precision one, a hub id, or
            "quickstart".
        run: instead of a model, the run directory whose quantized model is evaluated.
        config: instead of a model, the config.yaml of its run, as for validate.
        ckpt_path: a run is evaluated as it was finished, so only "last" makes sense.
        endpoint: instead of a model, the base address of an OpenAI-compatible server that serves
            one and scores prompts, as vllm serve does: http://localhost:8000/v1. A key, where it
            asks for one, is read from the environment variable OPENAI_API_KEY.
        served_model: the model's name at the endpoint (default: the only one it serves).
        compare: another model, usually the full-precision original, to measure beside it.
        tasks: names separated by commas: any of lm-eval's tasks, groups and tags.
        num_fewshot: examples in every prompt (default: what each task says, else 0).
        apply_chat_template: put prompts by the tokenizer's chat template, as lm-eval does.
        fewshot_as_multiturn: examples are turns of that conversation (default: yes; no puts them
            into one message).
        system_instruction: text before every prompt.
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
        tokenizer: directory or hub id of the tokenizer (default: the model's own; of an endpoint,
            that of the directory it serves, if that is on this machine).
        dtype: what models compute in; auto is what they are stored in, and float32 on a CPU.
        backend: arithmetic of a quantized model: integer, reference (floating point), or auto.
        device: cpu, cuda, cuda:1, …; auto is the GPU if there is one, all of them if several.
        seed: of few-shot examples and of generated text.
        output_dir: where results go (default: evaluation/ in the run, or runs/evaluation/NAME);
            further tasks and other limits add to what is there.
        json: print the results as one JSON document, and all else on standard error.

    Raises:
        ValueError: if options contradict each other.
    """

    model: str | None = None
    run: str | None = None
    config: str | None = None
    ckpt_path: Literal["last"] | None = None
    endpoint: str | None = None
    served_model: str | None = None
    compare: str | None = None
    tasks: str = ""
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None
    limit: int | None = None
    batch_size: BatchSize = "auto"
    data_dir: str | None = None
    tasks_dir: str | None = None
    mmlu: bool = False
    mmlu_data_dir: str | None = None
    perplexity: dict[str, str] | None = None
    sequence_length: int | None = None
    stride: int | None = None
    perplexity_windows: int | None = None
    tokenizer: str | None = None
    dtype: Dtype = "auto"
    backend: Backend = "auto"
    device: str = "auto"
    seed: int = DEFAULT_SEED
    output_dir: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        """Check what needs no file."""
        given = (self.model, self.run, self.config, self.endpoint)
        if len([value for value in given if value is not None]) != 1:
            raise ValueError(
                "give one of --model, --run, --config (the config.yaml of a run) and --endpoint"
            )
        self._check_endpoint()
        if self.ckpt_path is not None and self.run_directory is None:
            raise ValueError("--ckpt_path belongs to a run; a model directory has no checkpoint")
        if not self.task_names and not self.perplexity:
            raise ValueError("nothing to evaluate: give --tasks, --mmlu or --perplexity")
        if self.mmlu_data_dir and not any(name.startswith("mmlu") for name in self.task_names):
            raise ValueError("--mmlu_data_dir is given, but MMLU is not asked for: add --mmlu")
        if self.fewshot_as_multiturn is not None and not self.apply_chat_template:
            raise ValueError("--fewshot_as_multiturn needs --apply_chat_template")
        if (self.apply_chat_template or self.system_instruction) and not self.task_names:
            raise ValueError(
                "--apply_chat_template and --system_instruction are for tasks: give --tasks"
            )
        for name, least in (("limit", 1), ("batch_size", 1), ("num_fewshot", 0)):
            value = getattr(self, name)
            if value not in (None, "auto") and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")

    def _check_endpoint(self) -> None:
        """Refuse what contradicts an endpoint, or needs one."""
        if self.endpoint is None and self.served_model is not None:
            raise ValueError("--served_model is a name at an --endpoint, which is not given")
        if self.endpoint is not None and self.compare is None:
            for name in ("dtype", "device", "backend"):
                if getattr(self, name) != "auto":
                    raise ValueError(
                        f"--{name} {getattr(self, name)} is for a model that is loaded here; "
                        f"behind an --endpoint the server decides it: leave the option out"
                    )

    @property
    def run_directory(self) -> Path | None:
        """Directory of the run that is evaluated; ``None`` for a model directory."""
        if self.model is not None or self.endpoint is not None:
            return None
        given = user_path(str(self.run or self.config)).resolve()
        return given.parent if given.is_file() else given

    @property
    def task_names(self) -> list[str]:
        """Tasks, groups and tags, in their order."""
        names = [name.strip() for name in self.tasks.split(",") if name.strip()]
        return [*names, *(["mmlu"] if self.mmlu else [])]

    @property
    def prompting(self) -> Prompting:
        """How the prompts of tasks are put."""
        as_turns = self.apply_chat_template and self.fewshot_as_multiturn is not False
        return Prompting(self.apply_chat_template, as_turns, self.system_instruction or None)

    @property
    def source(self) -> str:
        """The model that is meant.

        Raises:
            ValueError: if the run is none, or not finished.
        """
        from duquant.evaluation.loaded_model import model_of_run

        return self.model or model_of_run(str(self.run or self.config))

    @property
    def output(self) -> Path:
        """Where results go."""
        if self.output_dir is not None:
            return user_path(self.output_dir)
        if self.endpoint is not None:
            return Path("runs") / "evaluation" / Path(self.served_model or "endpoint").name
        if self.model is None:
            return Path(self.source).parent / "evaluation"
        return Path("runs") / "evaluation" / user_path(self.model).resolve().name

    def given(self) -> dict[str, Any]:
        """The options that were given, apart from how results are printed."""
        given = {k: v for k, v in asdict(self).items() if v not in (None, "", False)}
        return {k: v for k, v in given.items() if k != "json"}

    def folder(self, name: Literal["data_dir", "tasks_dir", "mmlu_data_dir"]) -> Path | None:
        """One of the folders, if it is given."""
        text = getattr(self, name)
        return None if text is None else user_path(text)
