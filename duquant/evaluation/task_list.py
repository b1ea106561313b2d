"""From names to lm-eval tasks: local files first, then the user's definitions, then lm-eval's own.

With ``data_dir`` the names of the suite (``arc_easy``, ``hellaswag``, …) mean local files, and with
``mmlu_data_dir`` so does ``mmlu``. Every other name is looked up in ``tasks_dir`` and in lm-eval,
whose data come from the hub. lm-eval's index takes long to build (it parses thousands of files), so
names are looked for by a plain scan of these files; only groups and tags need the index.
"""

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from duquant.data.corpora import straight_to_the_cache_without_a_hub
from duquant.evaluation.local_items import TASKS_DIRECTORY, items_file, read_items
from duquant.evaluation.mmlu import MOST_SHOTS, local_subjects, mmlu_groups
from duquant.evaluation.record_layouts import LAYOUTS
from duquant.evaluation.silence import silence
from duquant.evaluation.task_definition import definition_digest
from duquant.plain_text import in_one_line
from duquant.yaml_bounds import require_bounded_yaml

NAMED = re.compile(r"""^\s*-?\s*["']?(?:task|group|tag)["']?:\s*["']?([\w.:-]+)""", re.MULTILINE)
TASK = re.compile(r"""^["']?task["']?:\s*["']?([\w.:-]+)["']?\s*(?:#.*)?$""", re.MULTILINE)
TAG_LIST = re.compile(r"""^["']?(?:tag|group)["']?:\s*\n((?:\s*-\s*\S+\s*\n)+)""", re.MULTILINE)
Groups = dict[str, tuple[str, ...]]


@dataclass
class TaskList:
    """What is to be evaluated.

    Attributes:
        tasks: lm-eval's tasks by name.
        groups: names of the tasks that a mean is taken over, by the name of that mean.
        definitions: digest of every task's configuration and items.
    """

    tasks: dict[str, Any] = field(default_factory=dict)
    groups: Groups = field(default_factory=dict)
    definitions: dict[str, str] = field(default_factory=dict)


def find_tasks(
    names: Iterable[str],
    *,
    data_dir: Path | None = None,
    tasks_dir: Path | None = None,
    mmlu_data_dir: Path | None = None,
    num_fewshot: int | None = None,
) -> TaskList:
    """Build the tasks that are asked for.

    Args:
        names: tasks, groups or tags, in the order they are reported.
        data_dir: folder of the suite's JSONL files.
        tasks_dir: folder of more task definitions, in lm-eval's YAML.
        mmlu_data_dir: folder of MMLU's ``dev`` and ``test``.
        num_fewshot: examples in a prompt (default: what each task says).

    Raises:
        ValueError: for an unknown name (with similar ones), files that are missing or damaged, and
            local files that have too few examples.
    """
    wanted = list(dict.fromkeys(names))
    for folder in (data_dir, tasks_dir, mmlu_data_dir):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
    local = _local_names(data_dir, mmlu_data_dir)
    elsewhere = [name for name in wanted if name not in local]
    scanned = _Scan()
    if elsewhere:
        scanned = _scan_of_lm_eval()
        if tasks_dir is not None:
            scanned = scanned.joined(_scan(tasks_dir))
        _require_known(elsewhere, local | scanned.names)
    found = TaskList()
    for name in wanted:
        if name in LAYOUTS and data_dir is not None:
            _require_examples(name, num_fewshot, 0)
            _add_suite_task(found, name, data_dir)
        elif name in local and mmlu_data_dir is not None:
            _require_examples(name, num_fewshot, MOST_SHOTS)
            _add_subjects(found, name, mmlu_data_dir)
        else:
            _add_from_lm_eval(found, name, scanned.files.get(name), tasks_dir)
    found.definitions = {n: definition_digest(t, num_fewshot) for n, t in found.tasks.items()}
    return found


def _local_names(data_dir: Path | None, mmlu_data_dir: Path | None) -> set[str]:
    names = set(LAYOUTS) if data_dir is not None else set()
    if mmlu_data_dir is not None:
        names |= {*mmlu_groups(), *mmlu_groups()["mmlu"]}
    return names


def _require_known(names: list[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=4)
            hint = f"did you mean {', '.join(near)}?" if near else "lm-eval has none like it"
            raise ValueError(f"there is no task {name}; {hint}")


def _require_examples(name: str, wanted: int | None, most: int) -> None:
    if wanted is not None and wanted > most:
        raise ValueError(
            f"num_fewshot is {wanted}, but the local files of {name} have {most} examples"
        )


@dataclass
class _Scan:
    """Names of tasks, groups and tags, and the files of single tasks, the last folder's first."""

    names: set[str] = field(default_factory=set)
    files: dict[str, Path] = field(default_factory=dict)

    def joined(self, later: "_Scan") -> "_Scan":
        """Both, and the later files where both have a task."""
        return _Scan(self.names | later.names, {**self.files, **later.files})


@functools.cache
def _scan_of_lm_eval() -> _Scan:
    """lm-eval's own definitions: thousands of files, the same ones while a process lives."""
    return _scan(Path(lm_eval.__file__).parent / "tasks")


def _scan(folder: Path) -> _Scan:
    """Look through a folder of definitions without parsing them."""
    scan = _Scan()
    for file in folder.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8", errors="replace")
        scan.names.update(NAMED.findall(text))
        scan.files.update(dict.fromkeys(TASK.findall(text), file))
        for block in TAG_LIST.findall(text):
            scan.names.update(line.strip(" -\"'") for line in block.splitlines())
    return scan


def _add_suite_task(found: TaskList, name: str, data_dir: Path) -> None:
    read_items(name, items_file(name, data_dir))  # complains in plain words, before lm-eval does
    manager = TaskManager(
        include_path=str(TASKS_DIRECTORY),
        include_defaults=False,
        metadata={"data_dir": str(data_dir)},
    )
    with silence():
        found.tasks[name] = manager.load([name])["tasks"][name]


def _add_subjects(found: TaskList, name: str, directory: Path) -> None:
    groups = mmlu_groups()
    members = groups.get(name, (name,))
    subjects = [member.removeprefix("mmlu_") for member in members]
    with silence():
        found.tasks |= local_subjects(directory, subjects)
    if name in groups:
        found.groups |= groups if name == "mmlu" else {name: members}


def _add_from_lm_eval(
    found: TaskList, name: str, file: Path | None, tasks_dir: Path | None
) -> None:
    try:
        if file is not None:
            require_bounded_yaml(file.read_text(encoding="utf-8"))
        with silence(), straight_to_the_cache_without_a_hub():
            manager = TaskManager(
                include_path=None if tasks_dir is None else str(tasks_dir),
                include_defaults=file is None,
            )
            loaded = manager.load([str(file or name)])
    except Exception as error:
        reason = in_one_line(error)
        if file is not None and tasks_dir is not None and file.is_relative_to(tasks_dir):
            raise ValueError(f"{file}: task {name} cannot be built: {reason}") from error
        raise ValueError(
            f"task {name} or its data cannot be had ({reason}); check the network, or give the "
            f"local files of the suite with --data_dir"
        ) from error
    found.tasks |= loaded["tasks"]
    found.groups |= _leaves(loaded.get("groups", {}), loaded.get("group_map", {}))


def _leaves(groups: Mapping[str, Any], children: Mapping[str, list[str]]) -> Groups:
    """Leaf tasks of every group that has a mean of its own."""

    def leaves(name: str) -> list[str]:
        if name not in children:
            return [name]
        return [leaf for child in children[name] for leaf in leaves(child)]

    return {
        name: tuple(leaves(name)) for name, group in groups.items() if _is_mean_over_items(group)
    }


def _is_mean_over_items(group: Any) -> bool:
    """Some groups have no mean, and some a mean over tasks of unequal size."""
    metrics = getattr(group, "aggregate_metric_list", None) or []
    return bool(metrics) and all(getattr(metric, "weight_by_size", False) for metric in metrics)
