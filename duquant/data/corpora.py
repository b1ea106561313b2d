"""Corpora: named ones from the Hugging Face hub, local files, and the text that Python carries.

A corpus is a list of documents and a joint between them. The field tokenizes the *joined* text as
one long sequence and cuts windows out of it, so that is what :func:`load_text` returns. WikiText-2
is joined by blank lines, as in every paper of the field; C4 and the Pile by one space.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from duquant.data.local_text import is_readable, read_documents, readable_names
from duquant.data.python_topics import python_topics
from duquant.model.hub import hub_answers
from duquant.plain_text import in_one_line
from duquant.user_paths import user_path

Split = Literal["train", "validation"]
PYTHON_TOPICS = "python_topics"
MIX = "mix"
MIX_PARTS = ("wikitext2", "ptb", "c4")


@dataclass(frozen=True)
class HubCorpus:
    """Where a corpus lives on the hub.

    Attributes:
        path: dataset id.
        name: configuration, or ``None``.
        splits: which hub split serves as train and as validation.
        files: data file per hub split, where the whole set would be too much.
        column: column that holds the text.
        joint: text between two documents.
        revision: branch of the dataset, or ``None``.
        limit: documents joined at most, 0 for all.
    """

    path: str
    name: str | None
    splits: dict[Split, str]
    column: str
    joint: str
    files: dict[str, str] | None = None
    revision: str | None = None
    limit: int = 0


HUB_CORPORA = {
    "wikitext2": HubCorpus(
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        {"train": "train", "validation": "test"},
        "text",
        "\n\n",
    ),
    "c4": HubCorpus(
        "allenai/c4",
        None,
        {"train": "train", "validation": "validation"},
        "text",
        " ",
        files={
            "train": "en/c4-train.00000-of-01024.json.gz",
            "validation": "en/c4-validation.00000-of-00008.json.gz",
        },
        limit=1100,
    ),
    "ptb": HubCorpus(
        "ptb-text-only/ptb_text_only",
        None,
        {"train": "train", "validation": "test"},
        "sentence",
        " ",
        revision="refs/convert/parquet",
    ),
    "pile": HubCorpus(
        "mit-han-lab/pile-val-backup",
        None,
        {"train": "validation", "validation": "validation"},
        "text",
        " ",
        limit=1100,
    ),
}
"""Validation of WikiText-2 and PTB is their *test* split, as the field reports it."""

CORPUS_NAMES = (*HUB_CORPORA, MIX, PYTHON_TOPICS)


def load_texts(source: str, split: Split) -> list[str]:
    """Texts of a corpus; a mix gives one per part, every other corpus a single one.

    Args:
        source: a name of :data:`CORPUS_NAMES` or a local file, see
            :mod:`duquant.data.local_text`.
        split: what a named corpus is wanted for; local files have no splits.

    Raises:
        ValueError: if there is no such corpus or file, or it cannot be read.
    """
    if source == MIX:
        return [text for part in MIX_PARTS for text in load_texts(part, split)]
    documents, joint = load_documents(source, split)
    limit = HUB_CORPORA[source].limit if source in HUB_CORPORA else 0
    return [joint.join(documents[: limit or None])]


def load_documents(source: str, split: Split) -> tuple[list[str], str]:
    """All documents of a corpus that is no mix, and the joint between them.

    Raises:
        ValueError: if there is no such corpus or file, or it cannot be read.
    """
    if source == PYTHON_TOPICS:
        return list(python_topics(split)), "\n\n"
    if source in HUB_CORPORA:
        return _load_from_hub(HUB_CORPORA[source], source, split), HUB_CORPORA[source].joint
    return read_documents(require_source(source)), "\n\n"


def require_source(source: str) -> Path:
    """Check, without reading it, that a corpus that is not a known name is a readable file.

    Raises:
        ValueError: naming what is wrong and what would do.
    """
    path = user_path(source)
    if path.is_dir():
        raise ValueError(f"{source} is a folder: give one of the files in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{source} is no regular file: copy what it gives into one")
    if not path.is_file():
        known = ", ".join(CORPUS_NAMES)
        raise ValueError(f"there is no text {source}: give a file or one of {known}")
    if not is_readable(path):
        raise ValueError(f"{source}: text files end in {readable_names()}, not {path.suffix!r}")
    return path


def _load_from_hub(corpus: HubCorpus, name: str, split: Split) -> list[str]:
    from datasets import load_dataset

    part = corpus.splits[split]
    files = corpus.files and {part: corpus.files[part]}
    try:
        with straight_to_the_cache_without_a_hub(), without_progress():
            rows = load_dataset(
                corpus.path,
                corpus.name,
                data_files=files,
                split=part,
                revision=corpus.revision,
                verification_mode="no_checks",  # one file of many is wanted
            )
    except Exception as error:
        raise ValueError(
            f"corpus {name} ({corpus.path}) did not come from the hub: {in_one_line(error)}; check "
            f"the network or give a local file instead"
        ) from error
    return list(rows[corpus.column])


@contextmanager
def straight_to_the_cache_without_a_hub() -> Iterator[None]:
    """Keep datasets, which takes no argument for it, from asking a silent hub six times."""
    from datasets import config

    was_offline = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = was_offline or not hub_answers()
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = was_offline


@contextmanager
def without_progress() -> Iterator[None]:
    """Keep datasets' own progress bars from appearing between our lines."""
    import datasets

    was_silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not was_silent:
            datasets.enable_progress_bars()
