"""Charts of a report, as SVG text that stands in the page itself."""

import io
from collections.abc import Mapping, Sequence

from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LARGEST = 1e30


def draw_losses(curves: Mapping[str, Sequence[float]]) -> str:
    """LWC loss of every block over its epochs, each over its first value.

    Args:
        curves: losses by the name of the curve, one per epoch.
    """
    figure = Figure(figsize=(6.4, 3.0))
    axis = figure.subplots()
    colors = colormaps["viridis"]
    for place, (name, losses) in enumerate(curves.items()):
        relative = _drawable([loss / (losses[0] or 1.0) for loss in losses])
        color = colors(place / max(1, len(curves) - 1))
        axis.plot(range(1, len(losses) + 1), relative, color=color, label=name, linewidth=1.2)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("LWC loss / first")
    if len(curves) <= 16:
        axis.legend(fontsize=7, ncols=2)
    return _svg(figure)


def draw_bars(values: Sequence[float], unit: str) -> str:
    """One bar per block.

    Args:
        values: height of each block's bar.
        unit: what the bars count.
    """
    figure = Figure(figsize=(6.4, 2.0))
    axis = figure.subplots()
    axis.bar(range(len(values)), _drawable(values), color="#4393c3")
    axis.set_xlabel("block")
    axis.set_ylabel(unit)
    return _svg(figure)


def _drawable(values: Sequence[float]) -> list[float]:
    """Values whose products do not overflow; damaged files may say anything."""
    return [min(max(value, -LARGEST), LARGEST) for value in values]


def _svg(figure: Figure) -> str:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("tight")
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "duquant", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
