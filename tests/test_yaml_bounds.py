"""YAML that a parser would follow for ever or too deep: one line that names the file, status 2."""

import os
import sys
from pathlib import Path

import pytest
import yaml

import cli
from duquant.yaml_bounds import DEEPEST, require_bounded_yaml
from tests.assets import REPOSITORY


def bomb(kind: str, levels: int = 12) -> str:
    """Every line stands for ten times what the line before it stands for."""
    first = {"list": "a0: &a0 [x, x]", "merge": "a0: &a0 {k: 1}", "key": "a0: &a0 {k: 1}"}[kind]
    lines = [first]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * 10)
        inner = {"list": f"[{aliases}]", "merge": f"{{<<: [{aliases}]}}"}.get(
            kind, "{" + ", ".join(f"k{n}: *a{level - 1}" for n in range(10)) + "}"
        )
        lines.append(f"a{level}: &a{level} {inner}")
    return "\n".join(lines)


HOSTILE = {
    "open brackets": "model: " + "[" * 10_000,
    "closed brackets": "model: " + "[" * 10_000 + "]" * 10_000,
    "open braces": "model: " + "{a: " * 10_000,
    "closed braces": "model: " + "{a: " * 500 + "1" + "}" * 500,
    "maps": "\n".join(" " * depth + f"a{depth}:" for depth in range(3000)),
    "lists of lists": "- " * 3000 + "x",
    "one too deep": "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
    "bomb of lists": bomb("list"),
    "bomb of merges": bomb("merge"),
    "bomb of values": bomb("key"),
    "holds itself": "model: &a\n  lwc: *a",
    "holds itself in a list": "model: &a [1, [*a]]",
    "holds itself by a merge": "model: &a {<<: *a}",
    "anchored anew while open": "model: &a [&a 1, *a, {b: *a}, *b]",
    "too many values": "model: [" + "1," * 100_000 + "]",
    "alias of nothing": "model: *nowhere",
    "a python object": "model: !!python/object/apply:os.getcwd []",
    "no YAML": "model: {a: ]",
    "control characters": "model: \x07",
}
PLAIN = [
    "",
    "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: [*x, *x]}",
    "[" * DEEPEST + "]" * DEEPEST,
]


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_of_options_is_refused_by_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = tmp_path / "options.yaml", tmp_path / "run"
    file.write_text(HOSTILE[kind])
    command = ["cli.py", "fit", "-c", str(file), "--output_dir", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith(f"error: {file}: ")
    assert said.count("\n") == 1
    assert len(said) < 600
    assert not output.exists()


@pytest.mark.parametrize("kind", ["closed brackets", "bomb of lists", "holds itself in a list"])
@pytest.mark.parametrize("joined", [False, True])
def test_so_is_the_value_of_an_option(
    kind: str, joined: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--model.lwc", "--data.validation", "--config"):
        given = [f"{option}={HOSTILE[kind]}"] if joined else [option, HOSTILE[kind]]
        monkeypatch.setattr(sys, "argv", ["cli.py", "fit", *given])
        with pytest.raises(SystemExit, match="2"):
            cli.main()
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert len(said) < 300


def test_bytes_that_are_no_text_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.yaml"
    file.write_bytes(b"model: \xff\xfe")
    monkeypatch.setattr(sys, "argv", ["cli.py", "fit", "-c", str(file)])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == f"error: {file}: it is not UTF-8 text (byte 7)\n"


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_yaml_passes(text: str) -> None:
    require_bounded_yaml(text)
    yaml.safe_load(text)


def test_so_does_every_configuration() -> None:
    for file in (REPOSITORY / "configs").rglob("*.yaml"):
        require_bounded_yaml(file.read_text())
    assert os.listdir(REPOSITORY / "configs")
