"""Compiled libraries in the user's cache directory, loaded only as this user published them.

What is loaded runs, and half a library kills the process that touches its missing half. So a
library carries the digest of its content in its name, ``NAME-DIGEST.so``, and is used while the two
fit, while it is a plain file of this user and while nobody else can write it. The name and the
content appear in one rename, after the content is on the disk: whatever interrupts that leaves
nothing or all of it. What does not pass is compiled again.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_directory() -> Path:
    """The user's directory for libraries; others lose the right to write in it.

    Raises:
        OSError: if it cannot be made or belongs to another user.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "duquant"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = directory.resolve()
    status = directory.stat()
    if status.st_uid != os.geteuid():
        raise OSError(f"{directory} belongs to another user")
    if status.st_mode & OTHERS_MAY_WRITE:
        directory.chmod(stat.S_IMODE(status.st_mode) & ~OTHERS_MAY_WRITE)
    return directory


def sound_libraries(directory: Path, name: str) -> Iterator[Path]:
    """Published libraries of this name that are what they were; usually one."""
    return (library for library in sorted(directory.glob(f"{name}-*.so")) if _is_sound(library))


def publish(built: Path, directory: Path, name: str) -> Path:
    """Move a finished library to its place in the directory.

    Args:
        built: it, in a temporary folder of the same file system.
        directory: where libraries are.
        name: what it is called without its digest.
    """
    library = directory / f"{name}-{_digest(built.read_bytes())}.so"
    built.chmod(0o700)
    _flush(built)
    if library.is_dir():
        library.rename(built.with_suffix(".obstacle"))
    built.replace(library)
    _flush(directory)
    return library


def _is_sound(library: Path) -> bool:
    try:  # neither through a link nor waiting for a pipe's writer
        descriptor = os.open(library, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
            if not is_ours or status.st_mode & OTHERS_MAY_WRITE:
                return False
            return library.stem.endswith(f"-{_digest(file.read())}")
    except OSError:
        return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
