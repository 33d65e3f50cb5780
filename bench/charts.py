"""Figures of saved results, in the colours of the report's page: light and dark, PNG and SVG."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.rcsetup import cycler
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
except ImportError as error:
    raise ValueError("plots need matplotlib: pip install 'comet-distill[report]'") from error

from bench.parts import PARTS
from bench.reading import Sweep, floor_seconds
from bench.results import Record

THEMES = ("light", "dark")
KINDS = ("png", "svg")
_FIRST = ("comet", "torch", "torch.compile", "dense")  # whose colours are the same in every figure
_VARIANTS = ("fused", "plain", "unfused", "cached", "cached-top")
_FLOORS = ("products",)  # not the op itself, but a part of it
_MARKS = "os^Dv<>P*X"
Ceilings = Mapping[str, Mapping[str, float]]


def colours(theme: str) -> dict[str, str]:
    """The variables of the report's style sheet that are colours, by name."""
    sheet = (files("comet.report") / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)
    return dict(re.findall(r"--([\w-]+): (#\w+)", blocks[THEMES.index(theme)]))


def draw_sweep(sweep: Sweep, ceilings: Ceilings, about: str, theme: str) -> dict[str, bytes]:
    """Time, share of the ceiling and extra memory against one size of an op, a line for each implementation.

    Args:
        sweep: of records of `ops`.
        ceilings: of the same file.
        about: the machine and the commit, written below.
        theme: of `THEMES`.

    Returns:
        Files by their kind.
    """

    def share(record: Record) -> float | None:
        floor = floor_seconds(record, ceilings)
        return None if floor is None else 100 * floor / record["median_seconds"]

    panels: list[tuple[str, Callable[[Record], float | None]]] = [
        ("time, ms", lambda record: 1e3 * record["median_seconds"]),
        ("extra memory, MiB", lambda record: (record["extra_bytes"] or 0) / 2**20),
        ("share of the ceiling, %", share),
    ]
    with rc_context(_settings(colours(theme))):
        figure, rows = _figure(3.9, 1)
        for axes, (title, value) in zip(rows[0], panels, strict=True):
            _lines(axes, sweep, value, _FIRST)
            _by_size(axes, sweep, title)
            if title.endswith("%"):
                axes.set_yscale("linear")
                axes.set_ylim(0, max(100, 1.1 * axes.get_ylim()[1]))
                axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        _legend(figure, rows[0])
        fixed = ", ".join(filter(None, (sweep.fixed, sweep.dtype, "forward and backward")))
        return _files(figure, f"{sweep.what}: {fixed}", about)


def draw_growth(sweeps: Sequence[Sweep], about: str, theme: str) -> dict[str, bytes]:
    """Time and peak memory of whole steps, a column for each size that was varied.

    Args:
        sweeps: of records of `steps`, one or more, on one device in one dtype.
        about: the machine and the commit.
        theme: of `THEMES`.
    """
    with rc_context(_settings(colours(theme))):
        figure, rows = _figure(6.2, 2, len(sweeps))
        for column, sweep in enumerate(sweeps):
            for row, (title, value) in enumerate(
                (
                    ("s per step", lambda record: record["median_seconds"]),
                    ("peak memory, GiB", lambda record: record["peak_bytes"] / 2**30),
                )
            ):
                _lines(rows[row][column], sweep, value, _VARIANTS)
                _by_size(rows[row][column], sweep, title)
                rows[row][column].set_xlabel(_with_the_others(sweep))
        _legend(figure, [axes for row in rows for axes in row])
        return _files(figure, f"the whole step, {sweeps[0].dtype}", about)


def draw_parts(records: Sequence[Record], about: str, theme: str) -> dict[str, bytes]:
    """Where a step's time goes: a bar for each variant, stacked by part.

    Args:
        records: of `steps` at the same sizes, each with `parts`.
        about: the sizes, the machine and the commit.
        theme: of `THEMES`.
    """
    palette = colours(theme)
    found = {part for record in records for part in record["parts"]}
    parts = [part for part in PARTS if part in found] + sorted(found.difference(PARTS))
    fills = [f"series-{number}" for number in range(1, 7)] + ["floor"]
    with rc_context(_settings(palette)):
        figure, rows = _figure(1.5 + 0.62 * len(records), 1, 1)
        axes = rows[0][0]
        longest = max(sum(record["parts"].values()) for record in records)
        for place, record in enumerate(records):
            start = 0.0
            for number, part in enumerate(parts):
                seconds = record["parts"].get(part, 0.0)
                axes.barh(
                    -place,
                    seconds,
                    0.62,
                    start,
                    color=palette[fills[number % len(fills)]],
                    edgecolor=palette["paper"],
                    label=part if place == 0 else None,
                )
                if seconds > 0.07 * longest:
                    axes.text(
                        start + seconds / 2,
                        -place,
                        _plain(seconds),
                        ha="center",
                        va="center",
                        color=palette["paper"],
                        fontsize=10,
                    )
                start += seconds
            rate = f" {_plain(record['tokens_per_second'])} tokens/s"
            axes.text(start, -place, rate, va="center")
        axes.set_yticks([-place for place in range(len(records))])
        axes.set_yticklabels([record["variant"] for record in records])
        axes.set_xlim(0, 1.22 * longest)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.set_title("seconds of each part, forward and backward", loc="left")
        _legend(figure, [axes])
        return _files(figure, f"the whole step, {records[0]['dtype']}", about)


def _settings(palette: Mapping[str, str]) -> Any:
    text, muted = palette["text"], palette["muted"]
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "comet",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 11,
        "axes.titlesize": 11.5,
        "axes.titlecolor": text,
        "text.color": text,
        "axes.labelcolor": muted,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "xtick.color": muted,
        "ytick.color": muted,
        "axes.edgecolor": muted,
        "axes.facecolor": palette["paper"],
        "figure.facecolor": palette["paper"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": palette["rule"],
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "legend.frameon": False,
        "axes.prop_cycle": _cycle(palette),
    }


def _cycle(palette: Mapping[str, str]) -> Any:
    return cycler(color=[palette[f"series-{number}"] for number in range(1, 8)])


def _figure(height: float, rows: int, columns: int = 3) -> tuple[Figure, Any]:
    figure = Figure(figsize=(10.5, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _lines(
    axes: Axes, sweep: Sweep, value: Callable[[Record], float | None], first: Sequence[str]
) -> None:
    others = [name for name in sweep.lines if name not in first and name not in _FLOORS]
    order = [name for name in (*first, *others, *_FLOORS) if name in sweep.lines]
    for name in order:
        points = [(one["sizes"][sweep.size], value(one)) for one in sweep.lines[name]]
        shown = [(x, y) for x, y in points if y]
        number = [*first, *others, *_FLOORS].index(name)
        axes.plot(
            [x for x, _ in shown],
            [y for _, y in shown],
            marker=_MARKS[number % len(_MARKS)],
            linestyle=":" if name in _FLOORS else "--" if number >= 7 else "-",
            color=axes.xaxis.label.get_color() if name in _FLOORS else f"C{number % 7}",
            linewidth=2.6 if number == 0 else 1.6,
            markersize=6,
            label=name,
            zorder=3 if number == 0 else 2,
        )


def _by_size(axes: Axes, sweep: Sweep, title: str) -> None:
    sizes = sorted({one["sizes"][sweep.size] for line in sweep.lines.values() for one in line})
    if sizes[0] > 0 and sizes[-1] >= 3 * sizes[0]:
        axes.set_xscale("log", base=2)
    low, high = axes.get_ylim()
    if axes.has_data() and low < high and axes.dataLim.y0 > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1,) if high > 300 * max(low, 1e-9) else (1, 2, 5))
        )
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_xticks(_apart(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_size))
    axes.set_title(title, loc="left")
    axes.set_xlabel(sweep.size)


def _with_the_others(sweep: Sweep) -> str:
    """The size that was varied, and what the others of a step were."""
    sizes = next(iter(sweep.lines.values()))[0]["sizes"]
    others = (name for name in ("batch", "length", "vocabulary") if name != sweep.size)
    return f"{sweep.size}   ({', '.join(f'{name} {_size(sizes[name])}' for name in others)})"


def _apart(sizes: Sequence[int]) -> list[int]:
    """Those that have room for their numbers: from the largest on every one that is at most 0.72 of the last."""
    kept: list[int] = []
    for size in reversed(sizes):
        if not kept or size <= 0.72 * kept[-1]:
            kept.append(size)
    return kept if len(kept) <= 6 else kept[::2]


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    named = {
        label: handle
        for one in axes
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
    }
    columns = min(len(named), 7 if sum(map(len, named)) < 70 else 5)
    figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=max(columns, 1))


def _files(figure: Figure, title: str, about: str) -> dict[str, bytes]:
    figure.supxlabel(f"{title}\n{about}", fontsize=9.5)
    made = {}
    for kind in KINDS:
        buffer = io.BytesIO()
        metadata: Any = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, metadata=metadata)
        made[kind] = buffer.getvalue()
    return made


def _plain(value: float, _: object = None) -> str:
    return f"{value:,.0f}" if value == 0 or value >= 10 else f"{value:.2g}"


def _size(value: float, _: object = None) -> str:
    """250002 as 250k, 1024 as it is."""
    return f"{value / 1000:.4g}k" if value >= 10_000 else f"{value:.0f}"
