"""Tables of a run's blocks: what hurts most comes first."""

import json
import math
from collections.abc import Sequence

from duquant.model.massive_tokens import MASSIVE, MassiveSite
from duquant.reporting.run_contents import RunContents
from duquant.reporting.run_files import BlockEntry, Peaks
from duquant.reporting.tables import Linked, Table, number

NOT_FINITE = "not finite"
ERROR = "Error: what quantization changes, of what the block adds to its input, mean over tokens"
SITE_ERRORS = (
    "Error of a site: the same if only that site's activation and the weights that read it are "
    "quantized, every weight to its nearest value. Attention operands: if only Q, K and V are"
)


def block_tables(run: RunContents, anchor: str) -> list[Table]:
    """Errors, massive tokens, and what training and transforms did.

    Args:
        run: the run.
        anchor: the identifier of the run's place on the page.
    """
    tables = [_error_table(run, anchor)]
    if any("massive_tokens" in block for block in run.summary["blocks"]):
        tables.append(_massive_table(run, anchor))
    return [*tables, _training_table(run, anchor)]


def compared_errors(runs: Sequence[RunContents]) -> Table:
    """The error of every block, runs side by side; the largest first."""
    found = [{block["index"]: block for block in run.summary["blocks"]} for run in runs]
    indices = sorted({index for blocks in found for index in blocks})
    indices.sort(key=lambda i: -max(error_of(blocks[i]) for blocks in found if i in blocks))
    rows = [
        [str(index), *(_error(blocks[index]) if index in blocks else "–" for blocks in found)]
        for index in indices
    ]
    names = [f"{run.name}" for run in runs]
    return Table(["block", *names], rows, "Error of every block", (ERROR,), descends_by="largest")


def error_of(block: BlockEntry) -> float:
    """A block's error, infinite if its output is not finite; negative where nothing is known."""
    error = block.get("relative_error")
    if error is None:
        return math.inf if block.get("complaint") else -1.0
    return error


def picture_anchor(anchor: str, block: int) -> str:
    """The identifier of the outlier picture of a run's block."""
    return f"{anchor}-block-{block}"


def _error_table(run: RunContents, anchor: str) -> Table:
    blocks = sorted(run.summary["blocks"], key=error_of, reverse=True)
    places = list(dict.fromkeys(p for block in blocks for p in block.get("site_errors", {})))
    rows = []
    for block in blocks:
        errors = block.get("site_errors", {})
        worst = [_words(max(errors, key=errors.__getitem__)) if errors else "–"] if places else []
        each = (number(errors.get(place), ".1%") for place in places)
        rows.append([_name(run, anchor, block["index"]), _error(block), *worst, *each])
    worst_column = ["largest part"] if places else []
    columns = ["block", "error", *worst_column, *map(_words, places)]
    notes = [
        f"Block {block['index']}: {words}"
        for block in blocks
        for words in (block.get("complaint"), block.get("damping"))
        if words
    ]
    notes += [ERROR] * bool(blocks) + [SITE_ERRORS] * bool(places)
    title = f"Blocks of {run.name}"
    return Table(columns, rows, title, tuple(notes), descends_by="error")


def _massive_table(run: RunContents, anchor: str) -> Table:
    found = [
        (block["index"], site)
        for block in run.summary["blocks"]
        for site in block.get("massive_tokens", [])
    ]
    found.sort(key=lambda pair: _times_typical(pair[1]), reverse=True)
    rows = [
        [
            _name(run, anchor, index),
            _words(site["site"]),
            f"{site['magnitude']:.4g}",
            f"{_times_typical(site):.4g}",
            str(site["channel"]),
            ", ".join(f"{_quoted(t['text'])} ({t['token_id']})" for t in site["tokens"]),
            str(site["count"]),
            str(site["at_start"]),
        ]
        for index, site in found
    ]
    columns = ["block", "site", "largest", "× typical", "channel"]
    columns += ["largest tokens", "massive tokens", "at a start"]
    title = f"Massive tokens of {run.name}"
    if not rows:
        none = f"No token is {MASSIVE:g} times as large as the median token of its site"
        return Table(columns, [], title, (none,))
    notes = (
        f"A token is massive if its largest activation is at least {MASSIVE:g} times that of the "
        f"median token of its site (typical), before quantization",
        "Largest tokens: their text and number; at a start: how many begin a calibration window",
    )
    return Table(columns, rows, title, notes, descends_by="× typical")


def _training_table(run: RunContents, anchor: str) -> Table:
    blocks = run.summary["blocks"]
    rows = [
        [
            _name(run, anchor, block["index"]),
            number(block["lwc_loss_first"], ".4g"),
            number(block["lwc_loss_last"], ".4g"),
            *(_peaks(site) for site in block["sites"].values()),
            f"{block['seconds']:.1f}",
            f"{block['peak_memory_bytes'] / 1e9:.2f}",
        ]
        for block in blocks
    ]
    sites = [_words(site) for site in (blocks[0]["sites"] if blocks else {})]
    columns = ["block", "first loss", "last loss", *sites, "seconds", "GB"]
    notes = ["Largest activation of every site before → after its transform"] * bool(sites)
    if any("condition" in site for block in blocks for site in block["sites"].values()):
        notes.append("In brackets: condition number of a transform that was trained")
    return Table(columns, rows, f"Training of {run.name}", tuple(notes))


def _name(run: RunContents, anchor: str, block: int) -> str:
    """A block's number, which leads to its picture where there is one."""
    has_picture = block in run.pictures
    return Linked(block, picture_anchor(anchor, block)) if has_picture else str(block)


def _error(block: BlockEntry) -> str:
    error = error_of(block)
    return "–" if error < 0 else NOT_FINITE if math.isinf(error) else f"{error:.1%}"


def _times_typical(site: MassiveSite) -> float:
    return site["magnitude"] / site["typical"] if site["typical"] > 0 else math.inf


def _words(place: str) -> str:
    return place.replace("_", " ")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _peaks(site: Peaks) -> str:
    peaks = f"{site['peak_before']:.3g} → {site['peak_after']:.3g}"
    return peaks + (f" ({site['condition']:.2g})" if "condition" in site else "")
