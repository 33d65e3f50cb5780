"""Numbers as readers see them."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from comet.runs import segments_of

if TYPE_CHECKING:  # which draws, with a library that words do without
    from comet.report.figures import Figure

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def points(figure: "Figure | None") -> str:
    """A figure in points of 100."""
    return "–" if figure is None else f"{figure.mean:.1f}".replace("-", "−")


def signed(figure: "Figure | None") -> str:
    """A difference in points."""
    return "–" if figure is None else f"{figure.mean:+.1f}".replace("-", "−")


def interval(figure: "Figure | None") -> str:
    """Its interval, empty where it has none."""
    if figure is None or figure.low is None or figure.high is None:
        return ""
    return f"{figure.low:.1f} to {figure.high:.1f}".replace("-", "−")


def deviation(figure: "Figure | None") -> str:
    """Its standard deviation over seeds, empty where it has none."""
    return "" if figure is None or figure.std is None else f"± {figure.std:.1f}"


def number(value: float | None) -> str:
    """A value in four digits."""
    if value is None:
        return "–"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.2e}".replace("-", "−")
    return f"{value:,.4g}".replace("-", "−")


def count(value: float | None) -> str:
    """A count in three or four digits with its unit: 69.2 M."""
    if value is None:
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return "–"
    for unit, one in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= one:
            return (
                f"{value / one:.3g} {unit}" if value < 1000 * one else f"{value / one:,.0f} {unit}"
            )
    return f"{value:,.0f} B"


def duration(seconds: float | None) -> str:
    """Hours and minutes, or less where it was less."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def drawable(text: str) -> str:
    """A text without the characters that no XML can hold, such as NUL."""
    return _NO_XML.sub("�", text)


def overlapping(languages: Mapping[str, Any], measure: str) -> list[str]:
    """How many texts of each language a model has read before, where it has, and the score of the others.

    Args:
        languages: as in scores-SPLIT.json.
        measure: the main one.
    """
    found = []
    for language, one in languages.items():
        overlap = one.get("overlap") or {}
        if overlap.get("any"):
            rest = overlap.get("without")
            score = "no other" if rest is None else f"{100 * rest[measure]['mean']:.1f} without"
            found.append(f"{language} {overlap['any']:,} of {one['examples']:,} ({score})")
    return found


def between(start: str | None, end: str | None) -> float | None:
    """Seconds between two times as run.json has them."""
    if not start or not end:
        return None
    try:
        return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    except ValueError:
        return None


def taken(record: Mapping[str, Any]) -> float | None:
    """Seconds that a run took, of all times that it was started or resumed; None where none of them ended."""
    found = (between(one.get("start"), one.get("end")) for one in segments_of(record))
    known = [seconds for seconds in found if seconds is not None]
    return sum(known) if known else None


def listed(names: list[str]) -> str:
    """Names as in a sentence: a, b and c."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
