"""The profile as a figure of three panels: parameters by part, latency and throughput by length."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import (
        FixedLocator,
        FuncFormatter,
        LogLocator,
        NullFormatter,
        NullLocator,
    )
except ImportError as error:
    raise ValueError("--plot needs matplotlib: pip install 'comet-distill[report]'") from error

from comet.report.words import drawable

KINDS = (".svg", ".png")
_TEXT, _MUTED, _RULE, _PAPER = "#1d1f23", "#5f646d", "#e3e1dc", "#ffffff"
_COLOURS = ("#0b6a8f", "#c2500a")  # of the first model and the second
_PARTS = {
    "embeddings": ("embeddings", "#4b55b8"),
    "position_embeddings": ("positions", "#e0b040"),
    "encoder_layers": ("encoder layers", "#a9b0ee"),
    "head": ("pooler and head", "#b4b0a6"),
}
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "comet",
    "text.parse_math": False,  # a folder may be called a$b$c
    "font.size": 9,
    "font.family": "DejaVu Sans",
}


def draw(profile: Mapping[str, Any], kind: str) -> bytes:
    """The figure as a file's content.

    Args:
        profile: what the JSON holds.
        kind: of `KINDS`.
    """
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(10, 3.6), dpi=150, facecolor=_PAPER, layout="constrained")
        FigureCanvasAgg(figure)
        parameters, latency, throughput = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
        _parameters(parameters, profile)
        _latency(latency, profile)
        _throughput(throughput, profile)
        threads, there = profile["threads"], profile["hardware"]
        where = there["gpu"] or f"{threads} thread{'s' * (threads > 1)}, {there['processor']}"
        figure.supxlabel(where, fontsize=8, color=_MUTED)
        buffer = io.BytesIO()
        metadata: Any = {"Date": None} if kind == ".svg" else {}
        figure.savefig(buffer, format=kind[1:], metadata=metadata)
    return buffer.getvalue()


def _parameters(axes: Axes, profile: Mapping[str, Any]) -> None:
    models = profile["models"]
    widest = max(model["parameters"]["total"] for model in models)
    unit, letter = (1e6, "M") if widest >= 1e6 else (1e3, "k")
    for place, model in enumerate(models):
        start = 0.0
        for part, (label, colour) in _PARTS.items():
            width = model["parameters"][part] / unit
            axes.barh(-place, width, 0.42, start, color=colour, label=label if place == 0 else None)
            start += width
        axes.text(0, -place + 0.27, _shortened(model["name"]), color=_TEXT, va="bottom")
        axes.text(
            start + 0.015 * widest / unit,
            -place,
            f"{start:,.1f} {letter}",
            color=_TEXT,
            va="center",
        )
    _quiet(axes, "parameters", "x")
    axes.set_xlim(0, 1.24 * widest / unit)
    axes.set_ylim(-len(models) - 0.25, 0.6)
    axes.yaxis.set_major_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{_plain(value)} {letter}"))
    axes.legend(
        loc="lower left", ncols=2, frameon=False, fontsize=8, labelcolor=_TEXT, handlelength=1
    )


def _latency(axes: Axes, profile: Mapping[str, Any]) -> None:
    for model, colour in zip(profile["models"], _COLOURS, strict=False):
        lengths = [one["length"] for one in model["latency"]]
        p50 = [1e3 * one["seconds"]["p50"] for one in model["latency"]]
        p95 = [1e3 * one["seconds"]["p95"] for one in model["latency"]]
        axes.fill_between(lengths, p50, p95, color=colour, alpha=0.18, linewidth=0)
        axes.plot(lengths, p50, "o-", color=colour, label=_shortened(model["name"]), markersize=4)
    _by_length(axes, profile)
    _quiet(axes, "latency of one sequence, ms (p50 to p95)", "y")


def _throughput(axes: Axes, profile: Mapping[str, Any]) -> None:
    for model, colour in zip(profile["models"], _COLOURS, strict=False):
        lengths = [one["length"] for one in model["throughput"]]
        rates = [one["tokens_per_second"] for one in model["throughput"]]
        axes.plot(lengths, rates, "o-", color=colour, label=_shortened(model["name"]), markersize=4)
    _by_length(axes, profile)
    _quiet(axes, f"throughput, tokens/s ({profile['batch']} sequences at once)", "y")


def _by_length(axes: Axes, profile: Mapping[str, Any]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths = [one["length"] for one in profile["models"][0]["latency"]]
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.3, high * 2)  # room for the names
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_xlabel("tokens", color=_MUTED)
    axes.legend(loc="upper left", frameon=False, fontsize=8, labelcolor=_TEXT)


def _quiet(axes: Axes, title: str, grid: Any) -> None:
    axes.set_title(title, loc="left", fontsize=9, color=_TEXT)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    axes.grid(axis=grid, color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=_MUTED, which="both")


def _plain(value: float, _: object = None) -> str:
    return f"{value:,.0f}" if value == 0 or value >= 10 else f"{value:.3g}"


def _shortened(name: str) -> str:
    name = drawable(name if len(name) <= 26 else "…" + name[-25:])
    return f" {name}" if name.startswith("_") else name  # else a legend leaves it out


def require_kind(path: Path) -> str:
    """The kind of figure that a file's name asks for.

    Raises:
        ValueError: none that can be drawn.
    """
    if path.suffix.lower() not in KINDS:
        raise ValueError(f"--plot: got {path}, expected a name that ends with {' or '.join(KINDS)}")
    return path.suffix.lower()
