"""The charts of scores: bars, differences, worth against cost; each a panel as wide as a phone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from comet.report.drawing import (
    SMALL,
    TEXT,
    WIDTH,
    Ink,
    panel,
    quiet,
    shortened,
    thousands,
    to_svg,
)

Role = Literal["own", "twin", "teacher", "floor", "published"]
_ROW, _EDGE = 30.0, 1.0  # height of a row of bars; what is left free right and left of them
_VALUE = 40.0  # how far right ends of intervals stand left of the panel's, where values do
_FILLS = {
    "own": Ink.ACCENT,
    "twin": Ink.TINT,
    "teacher": Ink.TEACHER,
    "floor": Ink.FLOOR,
    "published": Ink.PAPER,
}
_MARKS = {"teacher": "s", "floor": "D"}
_EDGES = {**_FILLS, "twin": Ink.ACCENT, "published": Ink.MUTED}


@dataclass(frozen=True)
class Bar:
    """A value with its 95 % interval, where it has one.

    Attributes:
        label: of what.
        value: in the chart's unit.
        low: lower end of the interval, or None.
        high: upper end, or None.
        role: decides the colour.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    role: Role = "own"


@dataclass(frozen=True)
class Point:
    """A system by what it costs and what it is worth."""

    bar: Bar
    cost: float
    labelled: bool = True


def bars(name: str, title: str, rows: Sequence[Bar], floor: float | None) -> str:
    """Values as bars from 0 to 100, one below the other, each under its own label.

    Args:
        name: distinct among the figures of the page.
        title: what is measured, for who cannot see the chart.
        rows: points of 100.
        floor: where a dashed line stands across all bars, or None.
    """
    figure, axes = _rows(len(rows), 0, 100, bottom=18)
    for place, row in enumerate(rows):
        y = _label(axes, place, len(rows), row, "{:.1f}")
        axes.add_patch(
            Rectangle(
                (0, y - 4.5),
                row.value,
                9,
                facecolor=_FILLS[row.role].value,
                edgecolor=_EDGES[row.role].value,
                linewidth=0.9,
            )
        )
        _whisker(axes, row, y)
        if floor is not None:
            axes.plot(
                [floor, floor],
                [y - 7.5, y + 7.5],
                color=Ink.TEXT.value,
                linewidth=1.2,
                linestyle=(0, (2, 1.5)),
                zorder=5,
            )
    axes.set_xticks([0, 25, 50, 75, 100])
    return to_svg(figure, name, _described(title, rows, "{:.1f}"))


def forest(name: str, title: str, rows: Sequence[Bar]) -> str:
    """Differences with their intervals around a line at nothing.

    Args:
        name: distinct among the figures of the page.
        title: what is compared, for who cannot see the chart.
        rows: differences in points.
    """
    ends = [value for row in rows for value in (row.value, row.low, row.high) if value is not None]
    reach = max([0.5, *map(abs, ends)]) * 1.12
    figure, axes = _rows(len(rows), -reach, reach, bottom=18)
    axes.axvline(0, color=Ink.TEXT.value, linewidth=1, zorder=1)
    for place, row in enumerate(rows):
        y = _label(axes, place, len(rows), row, "{:+.1f}")
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [y, y], color=Ink.ACCENT.value, linewidth=2.4)
        axes.plot(
            [row.value],
            [y],
            "o",
            color=Ink.ACCENT.value,
            markersize=7,
            markerfacecolor=Ink.ACCENT.value,
            markeredgecolor=Ink.PAPER.value,
        )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _signed(value)))
    return to_svg(figure, name, _described(title, rows, "{:+.1f}"))


def pareto(name: str, title: str, points: Sequence[Point], unit: str) -> str:
    """Worth against cost, the cost logarithmic, with a step line through what nothing else beats in both.

    Args:
        name: distinct among the figures of the page.
        title: what is shown, for who cannot see the chart.
        points: at least one; values in points of 100.
        unit: of the cost, as the axis names it.
    """
    figure, axes = panel(270, left=34, right=14, top=16, bottom=40)
    axes.set_xscale("log")
    best = sorted(frontier(points), key=lambda point: point.cost)
    if len(best) > 1:
        axes.plot(
            [point.cost for point in best],
            [point.bar.value for point in best],
            drawstyle="steps-post",
            color=Ink.ACCENT.value,
            linewidth=1,
            alpha=0.6,
            zorder=1,
        )
    for point in points:
        bar = point.bar
        if bar.low is not None and bar.high is not None:
            axes.plot([point.cost] * 2, [bar.low, bar.high], color=Ink.MUTED.value, linewidth=1)
        axes.plot(
            [point.cost],
            [bar.value],
            marker=_MARKS.get(bar.role, "o"),
            markersize=8,
            color=_FILLS[bar.role].value,
            markerfacecolor=_FILLS[bar.role].value,
            markeredgecolor=_EDGES[bar.role].value,
            zorder=3,
        )
    quiet(axes)
    _room_around(axes, points)
    axes.set_xlabel(unit, fontsize=SMALL, color=Ink.MUTED.value)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5), numticks=7)
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    _name_points(axes, [point for point in points if point.labelled])
    told = "; ".join(
        f"{point.bar.label} {point.bar.value:.1f} at {thousands(point.cost)}" for point in points
    )
    return to_svg(figure, name, f"{title} ({unit}): {told}")


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats: none costs as little or less and is worth more, or less and as much."""
    return [
        point
        for point in points
        if not any(
            (other.cost <= point.cost and other.bar.value > point.bar.value)
            or (other.cost < point.cost and other.bar.value >= point.bar.value)
            for other in points
        )
    ]


def _rows(count: int, low: float, high: float, bottom: float) -> tuple[Figure, Axes]:
    height = count * _ROW + bottom + 4
    figure, axes = panel(height, left=_EDGE, right=_EDGE, top=4, bottom=bottom)
    axes.set_xlim(low, high)
    axes.set_ylim(0, count * _ROW)
    quiet(axes)
    axes.grid(False)
    axes.set_yticks([])
    return figure, axes


def _label(axes: Axes, place: int, count: int, row: Bar, form: str) -> float:
    """Write a row's label and value above its middle, and give the height at which its mark stands."""
    top = (count - place) * _ROW
    value, interval = _minus(form.format(row.value)), _interval(row, form)
    right = axes.get_yaxis_transform()
    room = 44 if interval == "" else 26
    for x, text, ink, side, size in (
        (0, shortened(row.label, room), Ink.TEXT, "left", TEXT),
        (1, value, Ink.TEXT, "right", TEXT),
        (1 - _VALUE / WIDTH, interval, Ink.MUTED, "right", SMALL),
    ):
        axes.text(
            x,
            top - 13,
            text,
            color=ink.value,
            ha=side,
            va="baseline",
            fontsize=size,
            transform=right,
        )
    return top - 22


def _whisker(axes: Axes, row: Bar, y: float) -> None:
    """The interval, pale where it lies on a dark bar."""
    if row.low is None or row.high is None:
        return
    inside = Ink.PAPER if row.role in ("own", "teacher") else Ink.TEXT
    end = min(max(row.value, row.low), row.high)
    for low, high, ink in ((row.low, end, inside), (end, row.high, Ink.TEXT)):
        axes.plot([low, high], [y, y], color=ink.value, linewidth=1.6, solid_capstyle="butt")


def _interval(row: Bar, form: str) -> str:
    if row.low is None or row.high is None:
        return ""
    return f"{_minus(form.format(row.low))} to {_minus(form.format(row.high))}"


def _with_interval(row: Bar, form: str) -> str:
    interval = _interval(row, form)
    return _minus(form.format(row.value)) + (f" ({interval})" if interval else "")


def _described(title: str, rows: Sequence[Bar], form: str) -> str:
    return f"{title}: " + "; ".join(f"{row.label} {_with_interval(row, form)}" for row in rows)


def _room_around(axes: Axes, points: Sequence[Point]) -> None:
    costs = [point.cost for point in points]
    spread = max((max(costs) / min(costs)) ** 0.18, 1.6)
    axes.set_xlim(min(costs) / spread, max(costs) * spread)
    ends = [
        value
        for point in points
        for value in (point.bar.value, point.bar.low, point.bar.high)
        if value is not None
    ]
    room = max((max(ends) - min(ends)) * 0.16, 0.8)
    axes.set_ylim(min(ends) - room, max(ends) + room)


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Write labels beside their points, each at the first of some places where it covers no other label or point."""
    taken: list[tuple[float, float, float, float]] = []
    marks = [axes.transData.transform((point.cost, point.bar.value)) for point in points]
    for x, y in marks:
        taken.append((x - 5, y - 5, x + 5, y + 5))
    left, right = axes.bbox.x0, axes.bbox.x1 + 12
    for point, (x, y) in zip(points, marks, strict=True):
        text = shortened(point.bar.label, 22)
        width, height = 5.9 * len(text), 11.0
        places = [
            (8, -5.5),
            (-8 - width, -5.5),
            (8, 5),
            (-8 - width, 5),
            (8, -16),
            (-8 - width, -16),
        ]
        places += [(-width / 2, 9), (-width / 2, -20), (-width / 2, 21), (-width / 2, -32)]
        for dx, dy in places:
            box = (x + dx, y + dy, x + dx + width, y + dy + height)
            if box[0] >= left and box[2] <= right and not any(_overlap(box, one) for one in taken):
                taken.append(box)
                axes.annotate(
                    text,
                    box[:2],
                    xycoords="figure pixels",
                    fontsize=SMALL,
                    color=Ink.TEXT.value,
                    va="bottom",
                    annotation_clip=False,
                )
                break


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _signed(value: float) -> str:
    return _minus(f"{value:+.4g}") if value else "0"
