"""Charts of training: curves by language, and maps of attention."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from comet.report.drawing import (
    SMALL,
    TEXT,
    WIDTH,
    Ink,
    apart,
    panel,
    quiet,
    series,
    shortened,
    thousands,
    to_svg,
)

POINTS = (
    120  # of a curve, at most: several logged lines are averaged into each where there are more
)


@dataclass(frozen=True)
class Line:
    """A curve: its number among those of the same kind, which decides its colour, its label and its points."""

    index: int
    label: str
    steps: Sequence[int]
    values: Sequence[float]


def curves(
    name: str, title: str, lines: Sequence[Line], *, marked: bool = False, logarithmic: bool = False
) -> str:
    """Lines over training steps, each named at its right end.

    Args:
        name: distinct among the figures of the page.
        title: what is measured, for who cannot see the chart.
        lines: at least one, each with at least one point.
        marked: show each point, as few were measured.
        logarithmic: the values' axis.
    """
    longest = max(len(shortened(line.label, 14)) for line in lines)
    figure, axes = panel(214, left=44, right=12 + 6.2 * longest, top=10, bottom=24)
    if logarithmic:
        axes.set_yscale("log")
    for line in lines:
        colour, dashes = series(line.index)
        axes.plot(
            line.steps,
            line.values,
            color=colour,
            linestyle=dashes,
            linewidth=1.7,
            marker="o" if marked or len(line.steps) == 1 else None,
            markersize=4.5,
        )
    quiet(axes)
    if logarithmic:
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    else:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0) if min(min(line.values) for line in lines) >= 0 else low, high)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    _name_ends(axes, lines)
    ends = ", ".join(f"{line.label} {line.values[-1]:.4g}" for line in lines)
    return to_svg(figure, name, f"{title}; at the end {ends}")


def attention(
    name: str, title: str, tokens: Sequence[str], weights: Sequence[Sequence[float]], most: float
) -> str:
    """A map of attention, row looks at column, the accent colour as strong as the weight.

    Args:
        name: distinct among the figures of the page.
        title: whose, for who cannot see it.
        tokens: S of them.
        weights: `[S, S]`.
        most: the weight that is drawn at full strength.
    """
    size = len(tokens)
    labels = [shortened(token, 11) for token in tokens]
    margin = 8 + 5.6 * max(map(len, labels))
    figure, axes = panel(WIDTH, left=margin, right=2, top=margin, bottom=2)
    for row, values in enumerate(weights):
        for column, value in enumerate(values):
            strength = min(value / most, 1)
            if strength >= 0.01:
                axes.add_patch(
                    Rectangle(
                        (column + 0.03, row + 0.03),
                        0.94,
                        0.94,
                        facecolor=Ink.ACCENT.value,
                        edgecolor="none",
                        alpha=round(strength, 2),
                    )
                )
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)
    axes.xaxis.tick_top()
    ticks = [place + 0.5 for place in range(size)]
    axes.set_xticks(ticks, labels, rotation=90)
    axes.set_yticks(ticks, labels)
    axes.tick_params(length=0, pad=3, labelsize=SMALL, labelcolor=Ink.TEXT.value)
    for spine in axes.spines.values():
        spine.set_color(Ink.RULE.value)
    strongest = max(
        (
            (value, row, column)
            for row, some in enumerate(weights)
            for column, value in enumerate(some)
        )
    )
    return to_svg(
        figure,
        name,
        f"{title}: {size} tokens; strongest {strongest[0]:.2f}, "
        f"from {tokens[strongest[1]]} to {tokens[strongest[2]]}",
    )


def thinned(
    steps: Sequence[int], values: Sequence[float], most: int = POINTS
) -> tuple[list[int], list[float], int]:
    """A curve of at most so many points, and of how many logged lines each is the mean."""
    width = -(-len(steps) // most)
    starts = range(0, len(steps), width)
    means = [sum(values[s : s + width]) / len(values[s : s + width]) for s in starts]
    return [steps[min(s + width, len(steps)) - 1] for s in starts], means, width


def _name_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Write each line's label behind its end, moved apart where they would overlap."""
    ends = [axes.transData.transform((0, line.values[-1]))[1] for line in lines]
    bottom = axes.bbox.y0
    for line, y in zip(lines, apart(ends, 11.5, bottom + 2), strict=True):
        axes.annotate(
            shortened(line.label, 14),
            (axes.bbox.x1 + 6, y),
            xycoords="figure pixels",
            fontsize=TEXT,
            color=series(line.index)[0],
            va="center",
            annotation_clip=False,
        )
