"""Which model it is, by every byte of it.

:meth:`~duquant.model.checkpoint.Checkpoint.digest` reads samples: enough to tell models apart by
accident, not to say that a number measured for one is that of another. Here all of configuration
and weights is read, once: what a file holds is kept in the user's cache directory by the file's
place, size, times and inode, so 14 GB are hashed the first time only (a second per few GB, or what
the disk needs)::

    ~/.cache/duquant/content/3f2a91bc….json        (or $XDG_CACHE_HOME/duquant/content)

A file that was changed a moment ago is not kept: it could change again within one tick of the
clock.
"""

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from xxhash import xxh3_128

from duquant.atomic_files import write_json
from duquant.checksum import check_values, with_checksum
from duquant.json_files import read_json
from duquant.model.checkpoint import Checkpoint
from duquant.ops.kernels.library_cache import cache_directory

CHUNK_BYTES = 1 << 24
SETTLED_SECONDS = 2.0
"""How long a file must have been left alone before what it holds is kept."""


class _Kept(TypedDict):
    digest: str
    checksum: str


def content_digest(checkpoint: Checkpoint) -> str:
    """Every byte of configuration and weights, 32 hexadecimal digits."""
    files = [checkpoint.directory / "config.json", *sorted(set(checkpoint.files.values()))]
    digest = xxh3_128(json.dumps(sorted(checkpoint.files)).encode())
    for file in files:
        digest.update(f"{file.name} {_file_digest(file)} ".encode())
    return digest.hexdigest()


def _file_digest(file: Path) -> str:
    status = file.stat()
    changed = max(status.st_mtime, status.st_ctime)
    if time.time() - changed < SETTLED_SECONDS:
        return _read(file)
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino]
    name = hashlib.sha256(json.dumps([str(file.resolve()), *state]).encode()).hexdigest()[:32]
    try:
        place = cache_directory() / "content" / f"{name}.json"
    except (OSError, RuntimeError):  # RuntimeError: there is no home directory
        return _read(file)
    with suppress(ValueError):
        return str(check_values(read_json(place, _Kept), place)["digest"])
    digest = _read(file)
    with suppress(OSError):  # where nothing can be kept, do without
        write_json(place, with_checksum({"digest": digest}))
    return digest


def _read(file: Path) -> str:
    digest = xxh3_128()
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
