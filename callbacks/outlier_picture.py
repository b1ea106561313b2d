"""The outlier picture: how a site's channel magnitudes change from stage to stage.

A row per site, a column per stage (DuQuant, figure 2): the height of a line is the largest
magnitude of that channel. A row shares its scale, so the eye compares what quantization has to
cover: the range of a token is set by its tallest line.
"""

import io
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator
from torch import Tensor

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
MOST_CHANNELS = 1024
LAYOUT: dict[str, Any] = {
    **{"left": 0.05, "right": 0.99, "bottom": 0.05, "top": 0.9},
    **{"wspace": 0.08, "hspace": 0.45},
}


Segment = tuple[tuple[float, float], tuple[float, float]]


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
    grid = GridSpec(len(reports), len(stages), **LAYOUT)
    bottoms, tops, lefts, rights = grid.get_grid_positions(figure)
    for row, (site, report) in enumerate(reports.items()):
        highest = 1.05 * max(float(each.max()) for each in report.magnitudes.values()) or 1.0
        for column, stage in enumerate(stages):
            corner = (lefts[column], bottoms[row])
            size = (rights[column] - lefts[column], tops[row] - bottoms[row])
            panel = _Panel(figure, corner, size, highest)
            if column == 0:
                panel.label_height(site.replace("_", " "))
            if stage in report.magnitudes:
                panel.draw(report.magnitudes[stage], stage)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Panel:
    """One stage of one site, drawn without axes of its own: twenty of those take over a second.

    Attributes:
        figure: what it is a part of.
        corner: its lower left corner, as shares of the figure's width and height.
        size: its width and height, in the same unit.
        highest: magnitude at its upper edge.
    """

    figure: Figure
    corner: tuple[float, float]
    size: tuple[float, float]
    highest: float

    def draw(self, magnitudes: Tensor, stage: str) -> None:
        """A line per channel, or per group of channels where they are many."""
        channels = magnitudes.numel()
        step = -(-channels // MOST_CHANNELS)
        tallest = [float(chunk.max()) for chunk in magnitudes.split(step)]
        color = COLORS.get(stage, OTHER_COLOR)
        places = [self._at(step * i / channels, 0) for i in range(len(tallest))]
        heights = [self._at(0, value / self.highest)[1] for value in tallest]
        self._add([((x, y), (x, top)) for (x, y), top in zip(places, heights, strict=True)], color)
        corners = [self._at(*corner) for corner in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))]
        self._add(list(pairwise(corners)), "black")
        heading = f"{TITLES.get(stage, stage)}: {float(magnitudes.max()):.3g}"
        self.figure.text(*self._at(0.5, 1.06), heading, fontsize=9, ha="center")
        for channel in _ticks(channels):
            place = self._at(channel / channels, -0.04)
            self.figure.text(*place, f"{channel:.0f}", fontsize=7, ha="center", va="top")

    def label_height(self, name: str) -> None:
        """Name the row, and the magnitudes beside its first panel."""
        x, y = self._at(-0.14, 0.5)
        self.figure.text(x, y, name, fontsize=9, ha="right", va="center", rotation=90)
        for value in _ticks(self.highest):
            place = self._at(-0.02, value / self.highest)
            self.figure.text(*place, f"{value:.4g}", fontsize=7, ha="right", va="center")

    def _at(self, x: float, y: float) -> tuple[float, float]:
        """From shares of the panel to shares of the figure."""
        return self.corner[0] + x * self.size[0], self.corner[1] + y * self.size[1]

    def _add(self, lines: list[Segment], color: str) -> None:
        lines_of_one = LineCollection(lines, colors=color, linewidths=1)
        lines_of_one.set_transform(self.figure.transFigure)
        self.figure.add_artist(lines_of_one)


def _ticks(highest: float) -> list[float]:
    """Round numbers from 0 to at most ``highest``."""
    values = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(0, highest)
    return [float(value) for value in values if 0 <= value <= highest]
