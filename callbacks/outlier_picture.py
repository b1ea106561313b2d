"""The outlier picture: how a site's channel magnitudes change from stage to stage.

A row per site, a column per stage (DuQuant, figure 2): the height of a line is the largest
magnitude of that channel. A row shares its scale, so the eye compares what quantization has to
cover: the range of a token is set by its tallest line.
"""

import io

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
MOST_CHANNELS = 1024


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
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.05, top=0.9, wspace=0.08, hspace=0.45)
    axes = figure.subplots(len(reports), len(stages), squeeze=False, sharey="row")
    for row, (site, report) in zip(axes, reports.items(), strict=True):
        for axis, stage in zip(row, stages, strict=True):
            magnitudes = report.magnitudes.get(stage)
            if magnitudes is None:
                axis.set_axis_off()
                continue
            step = -(-magnitudes.numel() // MOST_CHANNELS)
            tallest = [float(chunk.max()) for chunk in magnitudes.split(step)]
            channels = [step * index for index in range(len(tallest))]
            axis.vlines(channels, 0, tallest, color=COLORS.get(stage, OTHER_COLOR), linewidth=1)
            axis.set_title(f"{TITLES.get(stage, stage)}: {float(magnitudes.max()):.3g}", fontsize=9)
            axis.tick_params(labelsize=7)
            axis.set_xlim(0, magnitudes.numel())
            axis.set_ylim(bottom=0)
        row[0].set_ylabel(site.replace("_", " "), fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()
