"""Pictures of a run, as they stand in its report.

A report is passed on, so nothing gets into it but what the run drew: PNG files of ordinary size
that lie in the run's directory themselves. A link could lead to anything.
"""

import base64
import os
import re
import stat
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST = 2**24
"""Bytes; the outlier picture of a block has about 2**17."""


def read_pictures(directory: Path) -> dict[int, str]:
    """The outlier picture of each block, by its number, as PNG bytes in base64.

    Args:
        directory: of the run.

    Raises:
        ValueError: if a file with the name of one is something else, naming it.
    """
    files = sorted((directory / "blocks").glob("outliers_*.png"))
    pictures = {_block(file): base64.b64encode(_read(file, directory)).decode() for file in files}
    return dict(sorted(pictures.items()))


def _block(file: Path) -> int:
    """The block whose picture a file is."""
    number = re.fullmatch("outliers_([0-9]{1,9})", file.stem, re.ASCII)
    if number is None:
        raise _no_picture(file, "of no block")
    return int(number[1])


def _read(file: Path, directory: Path) -> bytes:
    """The bytes of a picture."""
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(directory)):
        raise _no_picture(file, "a link that leads out of the run")
    try:
        opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _no_picture(file, "a link, or not readable") from error
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise _no_picture(file, "no regular file")
        with os.fdopen(opened, "rb", closefd=False) as stream:
            content = stream.read(LARGEST + 1)
    finally:
        os.close(opened)
    if not content.startswith(SIGNATURE):
        raise _no_picture(file, "no PNG")
    if len(content) > LARGEST:
        raise _no_picture(file, f"larger than {LARGEST} bytes")
    return content


def _no_picture(file: Path, what: str) -> ValueError:
    return ValueError(f"{file} is {what}, but its name is that of a picture: delete it")
