"""From a matplotlib figure to SVG that lives inside a page: its colours and font are the page's own CSS variables.

A figure is drawn at 72 dots per inch, so that one unit of it is one CSS pixel, and never wider than a phone: pages lay
such panels out side by side where there is room. Colours stand for what they mean; light, dark and print each say in
CSS how they look.
"""

import io
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any
from xml.etree import ElementTree

from comet.report.words import drawable

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ValueError(
        "charts need matplotlib and jinja2: pip install 'comet-distill[report]'"
    ) from error

WIDTH = 330  # of a panel, in CSS pixels: what a phone of 360 leaves inside the margins
SERIES = 7  # colours that differ also to colour-blind eyes; more lines differ by their dashes
TEXT, SMALL = 10.5, 9.0  # font sizes, in CSS pixels
_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
_LINK = "{http://www.w3.org/1999/xlink}href"
_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and copied
    "text.parse_math": False,  # a run may be called a$b$c
    "font.family": "DejaVu Sans",  # wider than what pages use, so that nothing measured with it overlaps
    "font.size": SMALL,
    "path.simplify": False,
    "hatch.linewidth": 0.6,
}


class Ink(str, Enum):
    """A colour by what it means; the value stands for it in the drawing until CSS's variable replaces it."""

    TEXT = "#c0de01"
    MUTED = "#c0de02"
    RULE = "#c0de03"
    ACCENT = "#c0de04"
    TEACHER = "#c0de05"
    FLOOR = "#c0de06"
    PAPER = "#c0de07"
    TINT = "#c0de08"


def series(index: int) -> tuple[str, str | tuple[int, tuple[float, ...]]]:
    """Colour and dashes of the line of this number."""
    return f"#c0de{0x11 + index % SERIES:02x}", _DASHES[index // SERIES % len(_DASHES)]


_VARIABLES = {ink.value: f"var(--{ink.name.lower()})" for ink in Ink} | {
    series(index)[0]: f"var(--series-{index + 1})" for index in range(SERIES)
}


def panel(
    height: float, *, left: float = 4, right: float = 4, top: float = 4, bottom: float = 4
) -> tuple[Figure, Axes]:
    """A figure as wide as a phone with one pair of axes; all in CSS pixels."""
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        box = (
            left / WIDTH,
            bottom / height,
            (WIDTH - left - right) / WIDTH,
            (height - top - bottom) / height,
        )
        axes = figure.add_axes(box)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    return figure, axes


def quiet(axes: Axes, *, ticks: int = 5) -> None:
    """Hair lines across, a base line, muted numbers: the data is the darkest thing there."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(Ink.MUTED.value)
    axes.spines["bottom"].set_linewidth(0.8)
    axes.grid(axis="y", color=Ink.RULE.value, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(
        axis="both", length=0, pad=4, labelsize=SMALL, labelcolor=Ink.MUTED.value, which="both"
    )
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(ticks))


def apart(positions: Sequence[float], distance: float, lowest: float) -> list[float]:
    """Positions of labels moved apart, in the same order, so that neighbours keep a distance.

    Args:
        positions: where the labels would stand.
        distance: between neighbours, at least.
        lowest: none stands below this.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    groups: list[tuple[list[int], float]] = []  # each stands in a block around its mean
    for index in order:
        members, centre = [index], positions[index]
        while groups:
            others, middle = groups[-1]
            if centre - middle >= distance * (len(others) + len(members)) / 2:
                break
            groups.pop()
            members = others + members
            centre = sum(positions[one] for one in members) / len(members)
        half = distance * (len(members) - 1) / 2
        groups.append((members, max(centre, lowest + half)))
    found = list(positions)
    for members, centre in groups:
        for place, index in enumerate(members):
            found[index] = centre + distance * (place - (len(members) - 1) / 2)
    return found


def shortened(text: str, most: int) -> str:
    """The text, its middle left out where it has more characters."""
    if len(text) <= most:
        return text
    kept = most - 1
    return text[: kept - kept // 3] + "…" + text[-(kept // 3) :]


def thousands(value: float) -> str:
    """A number on an axis: 20 k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g} {letter}"
    return f"{value:.4g}"


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element for a page.

    Args:
        figure: drawn with colours of `Ink` and `series`.
        name: distinct among the figures of a page.
        description: what a reader who cannot see it is told.
    """
    buffer = io.StringIO()
    for text in figure.findobj(Text):  # what was written outside of `panel`
        text.set_parse_math(False)
        text.set_text(drawable(text.get_text()))
    with rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(drawable(buffer.getvalue()))
    _strip(root, name)
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.set("role", "img")
    root.set("aria-label", drawable(description))
    return ElementTree.tostring(root, encoding="unicode")


def _strip(root: ElementTree.Element, name: str) -> None:
    """Take out what would leak into the page (styles, ids, fonts) or is of no use there, and put its colours in."""
    used = {
        match
        for element in root.iter()
        for value in element.attrib.values()
        for match in re.findall(r"#([A-Za-z]\w*)", value)
    }
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        if not (element.text or "").strip():
            element.text = None
        element.tail = None
        element.tag = element.tag.rsplit("}", 1)[-1]
        for key, value in list(element.attrib.items()):
            if key == "id":
                del element.attrib[key]
                if value in used:
                    element.set("id", f"{name}-{value}")
            elif key == _LINK:
                del element.attrib[key]
                element.set("href", f"#{name}-{value[1:]}")
            else:
                element.set(key, _value(value, name))


def _value(value: str, name: str) -> str:
    value = re.sub(r"url\(#(\w+)\)", rf"url(#{name}-\1)", value)
    value = re.sub(r"font-family: [^;]*", "font-family: var(--sans)", value)
    value = re.sub(r"font: (.*?)(\d[\d.]*px) [^;]*", r"font: \1\2 var(--sans)", value)
    return re.sub(r"#c0de\w\w", lambda match: _VARIABLES[match[0]], value)
