"""The outlier picture: how a site's channel magnitudes change from stage to stage.

A row per site, its stages side by side (DuQuant, figure 2): the height of a line is the largest
magnitude of that channel. A row has one scale, so the eye compares what quantization has to cover:
the range of a token is set by its tallest line.
"""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from duquant.model.site_report import SiteReport

TITLES = {
    "original": "original",
    "smoothed": "after smoothing",
    "rotated": "after rotation",
    "permuted": "after permutation",
    "transformed": "after second rotation",
}
COLORS = dict(zip(TITLES, ("#b2182b", "#ef8a62", "#92c5de", "#4393c3", "#2166ac"), strict=True))
OTHER_COLOR = "#4393c3"
MOST_CHANNELS = 240
"""Lines of a stage, which is as many pixels wide: more would hide each other."""
GAP = 0.06
"""Between two stages, as a share of a stage's width."""


def draw_outliers(reports: dict[str, SiteReport], title: str) -> bytes:
    """Draw all sites of a block.

    Args:
        reports: what each site's transform did, by site.
        title: heading.

    Returns:
        A PNG file's bytes.
    """
    stages = list(dict.fromkeys(name for site in reports.values() for name in site.magnitudes))
    figure = Figure(figsize=(3.0 * len(stages), 1.9 * len(reports) + 0.5))
    FigureCanvasAgg(figure)
    figure.suptitle(f"Largest activation per channel, {title}")
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.02, top=0.87, hspace=0.3)
    # Twenty axes, one for each stage of each site, would take over a second to draw.
    rows = figure.subplots(len(reports), 1, squeeze=False)[:, 0]
    for axis, (site, report) in zip(rows, reports.items(), strict=True):
        _draw_site(axis, report, stages)
        axis.set_ylabel(site.replace("_", " "), fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


def _draw_site(axis: Axes, report: SiteReport, stages: list[str]) -> None:
    """Stages from left to right, each a unit wide whatever its channels are."""
    titles = {}
    for place, stage in enumerate(stages):
        magnitudes = report.magnitudes.get(stage)
        if magnitudes is None:
            continue
        step = -(-magnitudes.numel() // MOST_CHANNELS)
        tallest = [float(chunk.max()) for chunk in magnitudes.split(step)]
        left, share = place * (1 + GAP), step / magnitudes.numel()
        channels = [left + share * index for index in range(len(tallest))]
        _draw_lines(axis, channels, tallest, COLORS.get(stage, OTHER_COLOR))
        titles[left + 0.5] = f"{TITLES.get(stage, stage)}: {float(magnitudes.max()):.3g}"
    axis.set_xticks(list(titles), list(titles.values()))
    axis.tick_params(axis="x", top=False, bottom=False, labeltop=True, labelbottom=False)
    axis.tick_params(labelsize=8)
    axis.set_xlim(-GAP, len(stages) * (1 + GAP))
    axis.set_ylim(bottom=0)


def _draw_lines(axis: Axes, places: list[float], heights: list[float], color: str) -> None:
    """Upright lines from zero, as one path with gaps, which is drawn faster than one for each."""
    count = len(places)
    across, up = np.repeat(places, 3), np.zeros((count, 3))
    up[:, 1], up[:, 2] = heights, np.nan
    axis.plot(across, up.reshape(-1), color=color, linewidth=1, solid_capstyle="butt")
