"""Charts of a report, as SVG text that stands in the page itself.

They take the page's colours, light or dark. Nothing is said by colour: what matters is written next
to the curve, and all values are in the page's tables.
"""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LARGEST = 1e30
ACCENT = "#2166ac"
PAGE_COLORS = {ACCENT: "var(--accent)", "#000000": "currentColor"}


def draw_losses(curves: Mapping[str, Sequence[float]], words: str) -> str:
    """LWC loss of every block over its epochs, each over its first value.

    The curves that end lowest and highest bear their names.

    Args:
        curves: losses by the name of the curve, one per epoch.
        words: what the chart shows, for who cannot see it.
    """
    figure = Figure(figsize=(6.4, 3.0))
    axis = figure.subplots()
    ends = {}
    for name, losses in curves.items():
        relative = _drawable([loss / (losses[0] or 1.0) for loss in losses])
        axis.plot(range(1, len(losses) + 1), relative, color=ACCENT, linewidth=1, alpha=0.7)
        ends[name] = (len(losses), relative[-1])
    for name in {f(ends, key=lambda name: ends[name][1]): None for f in (min, max)}:
        axis.annotate(name, ends[name], (4, 0), textcoords="offset points", va="center", size=8)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("LWC loss / first")
    return _svg(figure, words)


def draw_bars(values: Sequence[float], unit: str, words: str) -> str:
    """One bar per block.

    Args:
        values: height of each block's bar.
        unit: what the bars count.
        words: what the chart shows, for who cannot see it.
    """
    figure = Figure(figsize=(6.4, 2.0))
    axis = figure.subplots()
    axis.bar(range(len(values)), _drawable(values), color=ACCENT)
    axis.set_xlabel("block")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel(unit)
    return _svg(figure, words)


def with_own_names(svg: str, prefix: str) -> str:
    """The same chart with identifiers that no other chart of the page has."""
    named = re.sub(r'\bid="', f'id="{prefix}-', svg)
    return re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}-", named)


def _drawable(values: Sequence[float]) -> list[float]:
    """Values whose products do not overflow; damaged files may say anything."""
    return [min(max(value, -LARGEST), LARGEST) for value in values]


def _svg(figure: Figure, words: str) -> str:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("tight")
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "duquant", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    for color, of_the_page in PAGE_COLORS.items():
        text = text.replace(color, of_the_page)
    label = f'role="img" aria-label="{escape(words)}" '
    return text[text.index("<svg") :].replace("<svg ", f"<svg {label}", 1)
