"""Whatever lies in the cache directory, what is loaded is what the compiler made of the source."""

import ctypes
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from duquant.ops.kernels import compiler, int4
from duquant.ops.kernels.compiler import load_library
from duquant.ops.kernels.library_cache import cache_directory, publish, sound_libraries
from tests.forked_process import run_forked

pytestmark = pytest.mark.skipif(
    not int4.is_available(), reason="needs an x86 processor with AVX2 and a C compiler"
)
SOURCE = "int answer(void) { return 42; }\n"
OTHER = "int question(void) { return 6 * 9; }\n"
WRONG = "int answer(void) { return 6 * 9; }\n"


def is_right(library: ctypes.CDLL) -> bool:
    return bool(library.answer() == 42)


def load(folder: Path) -> ctypes.CDLL | None:
    return load_library("answer", is_right, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source, beside a cache that holds what was made of it."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "answer.c").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert load(folder) is not None
    return folder


@pytest.fixture
def cached(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library in a cache of the test's own: a process never loads one path twice."""
    shutil.copytree(folder / "cache", tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "_reasons", [])
    (library,) = (tmp_path / "cache" / "duquant").iterdir()
    return library


@pytest.fixture
def num_compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has an entry for every library that is compiled."""
    compiled: list[int] = []

    def counting(*arguments: Any) -> Path:
        compiled.append(1)
        return publish(*arguments)

    monkeypatch.setattr(compiler, "publish", counting)
    return compiled


def name_of(library: Path) -> str:
    return library.stem.rpartition("-")[0]


def publish_compiled(source: str, library: Path) -> None:
    """Put what a compiler makes of another source there, with its digest, before the library."""
    folder = library.parent / "tmp"
    folder.mkdir()
    (folder / "other.c").write_text(source)
    built = folder / "other.so"
    subprocess.check_call(["cc", "-shared", "-fPIC", str(folder / "other.c"), "-o", str(built)])
    library.unlink()
    publish(built, library.parent, name_of(library))


def replace_by(content: bytes) -> Callable[[Path], None]:
    def plant(library: Path) -> None:
        library.unlink()  # a file that this process has mapped must not shrink
        library.write_bytes(content)
        library.chmod(0o700)

    return plant


def replace_by_directory(library: Path) -> None:
    library.unlink()
    library.mkdir()
    (library / "file").write_text("in the way")


def replace_by_link(library: Path) -> None:
    library.rename(library.with_name("elsewhere"))
    library.symlink_to("elsewhere")


def replace_by_broken_link(library: Path) -> None:
    library.unlink()
    library.symlink_to("nowhere")


def replace_by_pipe(library: Path) -> None:
    library.unlink()
    os.mkfifo(library)


def rename_to(digest: str) -> Callable[[Path], None]:
    def plant(library: Path) -> None:
        library.rename(library.with_name(f"{name_of(library)}{digest}.so"))

    return plant


def leave_a_killed_compilation(library: Path) -> None:
    killed = library.parent / "tmp1234"
    killed.mkdir()
    library.rename(killed / library.name)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": replace_by(b""),
    "text": replace_by(b"#!/bin/sh\n"),
    "start of an ELF": replace_by(b"\x7fELF\x02\x01\x01" + bytes(57)),
    "first half": lambda library: replace_by(library.read_bytes()[:7000])(library),
    "one byte less": lambda library: replace_by(library.read_bytes()[:-1])(library),
    "one byte more": lambda library: replace_by(library.read_bytes() + b"\0")(library),
    "one bit": lambda library: replace_by(_flip(library.read_bytes(), 5000 * 8))(library),
    "group may write": lambda library: library.chmod(0o770),
    "others may write": lambda library: library.chmod(0o702),
    "directory": replace_by_directory,
    "link": replace_by_link,
    "broken link": replace_by_broken_link,
    "pipe": replace_by_pipe,
    "another digest": rename_to("-" + "0" * 32),
    "without digest": rename_to(""),
    "without the function": lambda library: publish_compiled(OTHER, library),
    "wrong results": lambda library: publish_compiled(WRONG, library),
    "killed while compiling": leave_a_killed_compilation,
}


def _flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_compiled_again(
    damage: str, folder: Path, cached: Path, num_compiled: list[int]
) -> None:
    DAMAGES[damage](cached)
    library = load(folder)
    assert library is not None
    assert library.answer() == 42
    assert len(num_compiled) == 1
    assert len(list(sound_libraries(cached.parent, name_of(cached)))) >= 1
    assert compiler._reasons == []
    assert load(folder) is not None
    assert len(num_compiled) == 1, "the second time it is found"


def test_what_is_sound_is_not_compiled_again(
    folder: Path, cached: Path, num_compiled: list[int]
) -> None:
    assert load(folder) is not None
    assert num_compiled == []


def test_no_change_of_a_file_passes(cached: Path) -> None:
    content, chance = cached.read_bytes(), random.Random(0)
    name = name_of(cached)
    assert list(sound_libraries(cached.parent, name)) == [cached]
    lengths = [*range(0, 200, 7), *(chance.randrange(len(content)) for _ in range(100))]
    changed = [content[:length] for length in lengths]
    changed += [_flip(content, chance.randrange(8 * len(content))) for _ in range(200)]
    for other in changed:
        replace_by(other)(cached)
        assert list(sound_libraries(cached.parent, name)) == []
    for mode in range(0o700, 0o1000):
        replace_by(content)(cached)
        cached.chmod(mode)
        assert bool(list(sound_libraries(cached.parent, name))) == (mode & 0o022 == 0)


def test_files_of_another_user_do_not_pass(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert list(sound_libraries(cached.parent, name_of(cached))) == []


def test_a_directory_of_another_user_is_not_used(
    folder: Path,
    cached: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert load(folder) is None
    assert load(folder) is None
    (message,) = caplog.messages
    assert f"{cached.parent} belongs to another user" in message
    assert "\n" not in message


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_others_lose_the_right_to_write_in_the_directory(mode: int, cached: Path) -> None:
    cached.parent.chmod(mode)
    assert cache_directory() == cached.parent
    assert cached.parent.stat().st_mode & 0o777 == mode & 0o755


def test_a_new_directory_is_the_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    assert cache_directory().stat().st_mode & 0o777 == 0o700


def test_a_compiler_whose_results_are_wrong_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "_reasons", [])
    for source in (WRONG, OTHER):
        (tmp_path / "answer.c").write_text(source)
        assert load(tmp_path) is None
    (message,) = caplog.messages
    assert "computes wrong results" in message


def test_processes_that_compile_at_once_do_not_disturb_each_other(
    folder: Path, tmp_path: Path
) -> None:
    code = f"""
import os
from pathlib import Path
from duquant.ops.kernels.compiler import load_library

def load():
    library = load_library("answer", lambda library: library.answer() == 42, Path({str(folder)!r}))
    os._exit(library.answer())

children = [os.fork() or load() for _ in range(4)]
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""
    process = run_forked(["-c", code], {**os.environ, "XDG_CACHE_HOME": str(tmp_path)})
    assert process.stdout.strip() == "[42, 42, 42, 42]", process.stderr
    libraries = list((tmp_path / "duquant").iterdir())
    assert libraries
    assert set(sound_libraries(tmp_path / "duquant", "answer")) == set(libraries)
