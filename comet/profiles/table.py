"""The profile of one model or two as text for people."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from comet.profiles.shapes import PUBLISHED_IN

_LABEL, _COLUMN, _NAME = 30, 22, 20
_FEW = 20  # passes, below which a 95th percentile is little more than the slowest
_PARTS = {
    "embeddings": "embeddings",
    "position_embeddings": "position embeddings",
    "encoder_layers": "encoder layers",
    "head": "pooler and head",
    "total": "all",
}


def table(profile: Mapping[str, Any]) -> str:
    """The lines of a profile.

    Args:
        profile: what the JSON holds.
    """
    return "\n".join(line.rstrip() for line in _lines(profile))


def _lines(profile: Mapping[str, Any]) -> Iterator[str]:
    models, ratios = profile["models"], profile["ratios"]
    rows = _Rows(models, ratios)
    yield _hardware(profile)
    yield ""
    yield rows.head()
    yield "parameters"
    for part, label in _PARTS.items():
        yield rows.row(label, "parameters", part, _count)
    yield from rows.published("parameters")
    computed = any(model["disk"]["computed"] for model in models)
    yield "bytes on disk" + " (of a shape: computed, nothing is written)" * computed
    for part in ("weights", "tokenizer", "all"):
        if any(model["disk"][part] is not None for model in models):
            yield rows.row(part, "disk", part, size)
    yield from rows.published("size")
    yield "memory, beyond the libraries'"
    yield rows.row("loaded, all weights read", "resident", "loaded", size)
    yield rows.row("most, with one pass", "resident", "peak", size)
    yield "latency, one sequence" + " " * 4 + "p50 / p95"
    for place, length in enumerate(_lengths(models)):
        yield rows.times(f"{length} tokens", place)
    yield from rows.published("milliseconds")
    yield f"throughput, {profile['batch']} sequences at once"
    for place, length in enumerate(_lengths(models)):
        yield rows.rates(f"{length} tokens", place)
    yield ""
    yield from _remarks(models)


class _Rows:
    """Lines with a column for each model and one for ratios."""

    def __init__(self, models: list[Mapping[str, Any]], ratios: Mapping[str, Any] | None) -> None:
        self._models = models
        self._ratios = ratios

    def head(self) -> str:
        names = [_shortened(model["name"]) for model in self._models]
        return _line("", names, "ratio" if self._ratios else "")

    def row(self, label: str, part: str, name: str, write: Callable[[Any], str]) -> str:
        """A line of sizes."""
        cells = [write(model[part][name]) for model in self._models]
        return _line(f"  {label}", cells, self._ratio(part, name))

    def times(self, label: str, place: int) -> str:
        """A line of latencies."""
        found = [model["latency"][place] for model in self._models]
        cells = [
            f"{_milliseconds(one['seconds']['p50'])} / {_milliseconds(one['seconds']['p95'])} ms"
            for one in found
        ]
        passes = min(one["passes"] for one in found)
        few = f"   ({passes} passes)" if passes < _FEW else ""
        return _line(f"  {label}", cells, self._of_length("latency", place)) + few

    def rates(self, label: str, place: int) -> str:
        """A line of throughputs."""
        found = [model["throughput"][place] for model in self._models]
        cells = [
            f"{_rate(one['tokens_per_second'])} tok/s {_rate(one['sequences_per_second']):>5}/s"
            for one in found
        ]
        return _line(f"  {label}", cells, self._of_length("throughput", place))

    def published(self, name: str) -> Iterator[str]:
        """What a paper says, where it says something of any of the models."""
        told = [(model["published"] or {}).get(name) for model in self._models]
        if any(told):
            cells = [f"{one:.0f} ms" if isinstance(one, float) else one or "–" for one in told]
            numbers = [one for one in told if isinstance(one, float)]
            ratio = f"{numbers[1] / numbers[0]:.2f}" if len(numbers) == 2 else ""
            yield _line("  as published", cells, ratio)

    def _ratio(self, part: str, name: str) -> str:
        if self._ratios is None:
            return ""
        value = self._ratios[part][name]
        return "–" if value is None else f"{value:.2f}"

    def _of_length(self, kind: str, place: int) -> str:
        return "" if self._ratios is None else f"{self._ratios[kind][place]['p50']:.2f}"


def _line(label: str, cells: list[str], ratio: str) -> str:
    return f"{label:{_LABEL}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells) + f"{ratio:>9}"


def _lengths(models: list[Mapping[str, Any]]) -> list[int]:
    return [one["length"] for one in models[0]["latency"]]


def _hardware(profile: Mapping[str, Any]) -> str:
    there, threads = profile["hardware"], profile["threads"]
    packages = ", ".join(
        f"{name} {version}"
        for name, version in profile["versions"].items()
        if version and (name != "onnxruntime" or _uses_onnx(profile))
    )
    machine = f"{there['processors']} × {there['processor']}, {size(there['memory_bytes'])}"
    gpu = f", {there['gpu']}" if there["gpu"] else ""
    return f"{threads} thread{'s' * (threads > 1)} of {machine}{gpu}; {packages}"


def _uses_onnx(profile: Mapping[str, Any]) -> bool:
    return any(model["runtime"] == "onnxruntime" for model in profile["models"])


def _remarks(models: list[Mapping[str, Any]]) -> Iterator[str]:
    if len(models) == 2:
        yield f"ratio: how many times smaller or faster {models[0]['name']} is"
    for timed in dict.fromkeys(model["timed"] for model in models):
        whom = [model["name"] for model in models if model["timed"] == timed]
        yield f"timed: {timed}" + f" ({whom[0]})" * (len(whom) < len(models))
    if any(model["published"] for model in models):
        yield f"as published: {PUBLISHED_IN}; of weights on disk, its GB and MB are GiB and MiB"


def _count(value: int) -> str:
    return f"{value:,}"


def size(count: int | None) -> str:
    """Bytes as people write them."""
    if count is None:
        return "–"
    for unit, one in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= one:
            return f"{count / one:,.2f} {unit}" if unit == "GiB" else f"{count / one:,.1f} {unit}"
    return f"{count / 1024:,.1f} KiB"


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME else "…" + name[1 - _NAME :]
