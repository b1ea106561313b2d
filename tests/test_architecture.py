"""The floors of the house, read from the import statements: imports only go down.

5  cli
4  callbacks; duquant.serving, which nothing imports
3  duquant.calibration, duquant.quantization: where modules, data and export meet
   duquant.modules, data, evaluation, export, preflight, reporting, quickstart
2  duquant.model
1  duquant.nn, duquant.transforms
0  duquant.ops, duquant.formats, duquant.rounding, duquant.config, duquant.processes,
   duquant.checksum, duquant.scores, duquant.run_description, duquant.compute_device

No two folders import each other, and no file imports itself in a circle, not even by imports inside
of functions or for annotations.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.assets import REPOSITORY

FLOORS = {
    "cli": 5,
    "callbacks": 4,
    "duquant": 3,
    "duquant.calibration": 3,
    "duquant.quantization": 3,
    "duquant.subcommands": 0,
    "duquant.check": 3,
    "duquant.lm_eval": 3,
    "duquant.modules": 3,
    "duquant.preflight": 3,
    "duquant.data": 3,
    "duquant.evaluation": 3,
    "duquant.export": 3,
    "duquant.quickstart": 3,
    "duquant.reporting": 3,
    "duquant.run_description": 0,
    "duquant.run_lock": 0,
    "duquant.scores": 0,
    "duquant.serving": 4,
    "duquant.model": 2,
    "duquant.nn": 1,
    "duquant.rounding": 0,
    "duquant.transforms": 1,
    "duquant.formats": 0,
    "duquant.registry": 0,
    "duquant.config": 0,
    "duquant.processes": 0,
    "duquant.recipe_learning": 0,
    "duquant.recipe_parts": 0,
    "duquant.recipe_formats": 0,
    "duquant.checksum": 0,
    "duquant.compute_device": 0,
    "duquant.atomic_files": 0,
    "duquant.json_files": 0,
    "duquant.json_shapes": 0,
    "duquant.write_behind": 0,
    "duquant.write_errors": 0,
    "duquant.interruption": 0,
    "duquant.user_paths": 0,
    "duquant.yaml_bounds": 0,
    "duquant.progress_bar": 0,
    "duquant.plain_text": 0,
    "duquant.json_output": 0,
    "duquant.terminal": 0,
    "duquant.terminal_table": 0,
    "duquant.extras": 0,
    "duquant.ops": 0,
}
STRANGERS = [{"duquant.modules", "duquant.data"}, {"callbacks", "duquant.serving"}]
"""Rooms on one floor without a door between them; the first two meet in callbacks."""
DOORS = [
    ("duquant.checksum", "duquant.atomic_files"),
    ("duquant.compute_device", "duquant.plain_text"),
    ("duquant.config", "duquant.ops"),
    ("duquant.config", "duquant.recipe_learning"),
    ("duquant.config", "duquant.recipe_parts"),
    ("duquant.recipe_learning", "duquant.recipe_parts"),
    ("duquant.recipe_parts", "duquant.ops"),
    ("duquant.run_description", "duquant.config"),
    ("duquant.json_files", "duquant.json_shapes"),
    ("duquant.progress_bar", "duquant.plain_text"),
    ("duquant.json_output", "duquant.terminal"),
    ("duquant.terminal", "duquant.plain_text"),
    ("duquant.terminal_table", "duquant.plain_text"),
    ("duquant.nn", "duquant.transforms"),
    ("duquant.config", "duquant.formats"),
    ("duquant.config", "duquant.recipe_formats"),
    ("duquant.recipe_formats", "duquant.formats"),
    ("duquant.recipe_formats", "duquant.recipe_parts"),
    ("duquant.config", "duquant.rounding"),
    ("duquant.rounding", "duquant.formats"),
    ("duquant.rounding", "duquant.registry"),
    ("duquant.rounding", "duquant.ops"),
    ("duquant.formats", "duquant.ops"),
    ("duquant.formats", "duquant.registry"),
    ("duquant.atomic_files", "duquant.write_errors"),
    ("duquant.write_behind", "duquant.terminal"),
    ("duquant.write_behind", "duquant.write_errors"),
]
"""Doors between rooms below the third floor, importer first."""

Sources = dict[str, str]
"""Source text by module name."""


def project_sources() -> Sources:
    files = [REPOSITORY / "cli.py", *(REPOSITORY / "callbacks").rglob("*.py")]
    files += (REPOSITORY / "duquant").rglob("*.py")
    sources = {}
    for file in files:
        if file.is_file():
            parts = file.relative_to(REPOSITORY).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            sources[name] = file.read_text(encoding="utf-8")
    return sources


def room(module: str) -> str | None:
    """The longest entry of ``FLOORS`` that holds a module; ``duquant`` holds only itself."""
    parts = module.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    rooms = [prefix for prefix in prefixes if prefix in FLOORS]
    return None if not rooms or (rooms[0] == "duquant" != module) else rooms[0]


def imports(module: str, sources: Sources) -> Iterator[str]:
    """Modules of the project that a module imports anywhere."""
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in sources)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import hides the floor it leads to"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            reached = {name if name in sources else str(node.module) for name in submodules}
            yield from reached & sources.keys()


def violations(sources: Sources) -> list[str]:
    found = [f"{module} has no floor" for module in sources if room(module) is None]
    for module in sources:
        importer = room(module)
        for imported in sorted(set(imports(module, sources))):
            target = room(imported)
            if importer is None or target is None or importer == target:
                continue
            crossing = f"{module} imports {imported}"
            if FLOORS[importer] < FLOORS[target]:
                found.append(f"{crossing}, which lies above it")
            elif {importer, target} in STRANGERS:
                found.append(f"{crossing}: these two rooms do not know each other")
            elif FLOORS[importer] == FLOORS[target] < 3 and (importer, target) not in DOORS:
                found.append(f"{crossing}: there is no door between these two rooms")
    return found


def mutual(sources: Sources) -> list[str]:
    """Pairs of folders that import each other; a file outside of folders counts as one."""
    crossings = {
        (room(module), room(imported)): f"{module} imports {imported}"
        for module in sources
        for imported in imports(module, sources)
        if room(module) != room(imported)
    }
    return [
        f"{crossing}, but {crossings[target, importer]}"
        for (importer, target), crossing in crossings.items()
        if str(importer) < str(target) and (target, importer) in crossings
    ]


def cycle(sources: Sources) -> list[str]:
    graph = {module: set(imports(module, sources)) for module in sources}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_only_go_down() -> None:
    assert violations(project_sources()) == []


def test_no_two_folders_import_each_other() -> None:
    assert mutual(project_sources()) == []


def test_no_module_imports_itself_in_a_circle() -> None:
    assert cycle(project_sources()) == []


def test_no_file_and_no_function_is_longer_than_one_reads_at_once() -> None:
    for module, source in project_sources().items():
        assert source.count("\n") <= 250, module
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno < 60, f"{module}.{node.name}"


def test_the_whole_project_is_read() -> None:
    sources = project_sources()
    assert {"duquant", "duquant.config", "duquant.ops.affine", "duquant.nn.linear"} <= set(sources)
    assert any(room(module) == "duquant.model" for module in sources)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("duquant.ops.affine", "import duquant.nn.linear", "above"),
        ("duquant.nn.linear", "from duquant.model import surgery", "above"),
        ("duquant.modules.block", "def f():\n    import callbacks.resume", "above"),
        ("duquant.export.packed", "from cli import main", "above"),
        ("callbacks.resume", "import cli", "above"),
        ("duquant.modules.block", "from duquant.data.streams import Stream", "do not know"),
        ("duquant.data.streams", "import duquant.modules.block", "do not know"),
        ("duquant.ops.affine", "from duquant.config import Recipe", "no door"),
        ("duquant.helpers", "", "no floor"),
        ("duquant.model.surgery", "import duquant.export.packed", "above"),
    ],
)
def test_the_checker_finds_what_it_looks_for(module: str, source: str, complaint: str) -> None:
    house = dict.fromkeys(
        [
            "cli",
            "callbacks.resume",
            "duquant.config",
            "duquant.data.streams",
            "duquant.export.packed",
            "duquant.model.surgery",
            "duquant.modules.block",
            "duquant.nn.linear",
            "duquant.ops.affine",
        ],
        "",
    )
    assert violations(house) == []
    found = violations({**house, module: source})
    assert len(found) == 1
    assert complaint in found[0]


def test_the_checker_allows_what_the_floors_allow() -> None:
    house = {
        "cli": "import callbacks.resume\nfrom duquant.config import Recipe",
        "callbacks.resume": "import duquant.modules.block, duquant.data.streams",
        "duquant.config": "from duquant.ops.affine import BITS",
        "duquant.data.streams": "from duquant.model.surgery import assemble",
        "duquant.export.packed": "from duquant.evaluation.perplexity import perplexity",
        "duquant.evaluation.perplexity": "import torch",
        "duquant.model.surgery": "from duquant.nn import linear",
        "duquant.modules.block": "",
        "duquant.nn.linear": "",
        "duquant.ops.affine": "",
    }
    assert violations(house) == []
    assert mutual(house) == []
    assert cycle(house) == []


@pytest.mark.parametrize(
    "back",
    [
        "from {} import x",
        "def f():\n    import {}",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {}",
    ],
)
def test_the_checker_finds_circles_of_files_however_they_are_imported(back: str) -> None:
    first, second, third = (f"duquant.ops.{name}" for name in ("first", "second", "third"))
    chain = {first: f"import {second}", second: f"import {third}", third: ""}
    assert not cycle(chain)
    assert set(cycle({**chain, third: back.format(first)})) == {first, second, third}


@pytest.mark.parametrize("back", ["import {}", "def f():\n    from {} import x"])
def test_the_checker_finds_folders_that_import_each_other_by_different_files(back: str) -> None:
    house = {
        "duquant.evaluation.command": "import duquant.reporting.report",
        "duquant.evaluation.mt_bench.scores": "",
        "duquant.reporting.report": "",
        "duquant.reporting.tables": "",
    }
    assert mutual(house) == []
    house["duquant.reporting.tables"] = back.format("duquant.evaluation.mt_bench.scores")
    assert not cycle(house)
    (found,) = mutual(house)
    assert "duquant.reporting.tables imports duquant.evaluation.mt_bench.scores" in found
