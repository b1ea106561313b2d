"""The READMEs: the first one is short; links, named configurations and options exist."""

import re
import sys
from inspect import signature
from pathlib import Path

import pytest
from lightning.pytorch import loggers

import cli
from tests.assets import REPOSITORY

MOST_LINES, WIDEST = 140, 120
OF_LOGGER = "--trainer.logger."
NOT_OURS = {"runs", "build", "dist"}
READMES = sorted(
    path.relative_to(REPOSITORY)
    for path in REPOSITORY.rglob("README.md")
    if not any(p in NOT_OURS or p.startswith(".") for p in path.relative_to(REPOSITORY).parts)
)
LISTING = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
WORDS_OF_CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
OUTSIDE = re.compile(r"[a-z]+:")
COMMAND = re.compile(r"python cli\.py (mtbench \w+|\w+)((?:\\\n|[^\n`])*)")
OPTION = re.compile(r"--[a-zA-Z_][\w.]*")
CONFIGURATION = re.compile(r"configs/[\w/]+\.yaml")


def anchors(text: str) -> set[str]:
    """What a hub makes of the headings: lower case, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.*)$", LISTING.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_somewhere(readme: Path, link: str) -> bool:
    """Whether a link goes to the web, or to a file, and its heading, that exist."""
    if OUTSIDE.match(link):
        return True
    path, _, heading = link.partition("#")
    target = readme.parent / path if path else readme
    if not target.exists():
        return False
    return not heading or heading in anchors(target.read_text(encoding="utf-8"))


def broken_links(readme: Path) -> list[str]:
    """Relative links to files or headings that do not exist."""
    text = LISTING.sub("", readme.read_text(encoding="utf-8"))
    links = LINK.findall(WORDS_OF_CODE.sub("", text))
    return [link for link in links if not leads_somewhere(readme, link)]


def test_the_first_readme_is_short() -> None:
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    assert [line for line in lines if len(line) > WIDEST] == []


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_links_lead_somewhere(readme: Path) -> None:
    assert broken_links(REPOSITORY / readme) == []


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_named_configurations_exist(readme: Path) -> None:
    named = set(CONFIGURATION.findall((REPOSITORY / readme).read_text(encoding="utf-8")))
    assert [name for name in sorted(named) if not (REPOSITORY / name).is_file()] == []


def test_loggers_have_the_options_that_are_given_to_them() -> None:
    """The help of ``fit`` does not know which logger will be chosen."""
    text = "\n".join((REPOSITORY / readme).read_text(encoding="utf-8") for readme in READMES)
    given = re.findall(rf"--trainer.logger (\w+) {OF_LOGGER}(\w+)", text)
    assert len(given) == text.count(OF_LOGGER) > 0
    for logger, option in given:
        assert option in signature(getattr(loggers, logger)).parameters


def named_options(subcommand: str) -> set[str]:
    """Options that a README gives to a subcommand; of ``fit`` those in sentences as well."""
    texts = [(REPOSITORY / readme).read_text(encoding="utf-8") for readme in READMES]
    given = {
        option
        for text in texts
        for name, arguments in COMMAND.findall(text)
        if name == subcommand
        for option in OPTION.findall(arguments)
    }
    sections = ("--model.", "--data.", "--trainer.")
    named = {option for text in texts for option in OPTION.findall(text)}
    given = {option for option in given if not option.startswith(OF_LOGGER)}
    named = {option for option in named if not option.startswith(OF_LOGGER)}
    return given | {o for o in named if subcommand == "fit" and o.startswith(sections)}


@pytest.mark.parametrize(
    ("subcommand", "known"),
    [
        ("fit", "--model.rotation.transform"),
        ("evaluate", "--perplexity"),
        ("export", "--to"),
        ("mtbench answer", "--chat_template"),
        ("mtbench judge", "--judge_prompts"),
    ],
)
def test_named_options_exist(
    subcommand: str, known: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cli.py", *subcommand.split(), "--help"])
    with pytest.raises(SystemExit):
        cli.build()
    offered = set(OPTION.findall(capsys.readouterr().out))
    named = {option.rstrip(".") for option in named_options(subcommand)}
    assert known in named
    assert named - offered == set()


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A `few` words, here\n", encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(
        "# Top\n[fine](other.md) [self](#top) [web](https://a.b/c) `[code](gone)`\n"
        "```\n[code](gone)\n```\n![gone](picture.png) [heading](other.md#more)\n"
        "[there](other.md#a-few-words-here)\n",
        encoding="utf-8",
    )
    assert broken_links(readme) == ["picture.png", "other.md#more"]
