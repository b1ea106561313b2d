"""An environment that holds some distributions and nothing else, without installing any.

Its folder links to what is installed here, distribution by distribution, as their metadata require.
A Python that was started without ``site-packages`` and with that folder finds what a fresh virtual
environment would hold, in no time.
"""

import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

from packaging.requirements import Requirement

from tests.assets import REPOSITORY

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
START = "import sys, runpy; sys.path.append({site!r}); sys.argv = {argv!r}; "


def build_wheel(directory: Path) -> Path:
    """The project's wheel, built from a copy of its files; it takes no network."""
    source = directory / "source"
    copytree(REPOSITORY / "duquant", source / "duquant", ignore=ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        copy(REPOSITORY / file, source)
    command = [sys.executable, "-c", BUILD, str(directory)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    return wheel


def install_alone(wheel: Path, site: Path, *extras: str) -> Path:
    """Unpack a wheel into a folder and link what it requires, with these extras."""
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    (metadata,) = site.glob("*.dist-info")
    for dist in required(Distribution.at(metadata), extras, {}).values():
        for name in {file.parts[0] for file in dist.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(str(dist.locate_file(name))))
    return site


def required(
    dist: Distribution, extras: Iterable[str], found: dict[str, Distribution]
) -> dict[str, Distribution]:
    """What a distribution requires, and what that requires, by name; itself left out."""
    for wanted in _requirements(dist, extras):
        name = wanted.name.lower().replace("_", "-")
        if wanted.name == dist.name:  # an extra that includes others
            required(dist, wanted.extras, found)
        elif name not in found:
            found[name] = distribution(wanted.name)
            required(found[name], wanted.extras, found)
    return found


def start_in(site: Path, code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run code where only that folder and the standard library can be imported."""
    start = START.format(site=str(site), argv=["-c", *arguments])
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + code], text=True, capture_output=True
    )


def _requirements(dist: Distribution, extras: Iterable[str]) -> Iterator[Requirement]:
    for line in dist.requires or ():
        wanted = Requirement(line)
        chosen = ({"extra": extra} for extra in ("", *extras))
        if wanted.marker is None or any(map(wanted.marker.evaluate, chosen)):
            yield wanted
