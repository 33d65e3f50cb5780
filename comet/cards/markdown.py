"""Names from data, models and flags in Markdown: as words or as code, never as mark-up or HTML."""

import re

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKS = re.compile(r"[\\`*\[\]|~$]|(?<!\w)[_#]|_(?!\w)")


def escaped(name: object) -> str:
    """A name that reads as it is, in one line."""
    text = _one_line(name)
    text = "".join(_HTML.get(one, one) for one in text)
    return _MARKS.sub(r"\\\g<0>", text)


def code(name: object) -> str:
    """A name in backticks, of which it may hold some itself."""
    text = _one_line(name)
    ticks = "`" * (_longest_run(text) + 1)
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{room}{text}{room}{ticks}"


def fenced(text: str, language: str) -> str:
    """Lines of code, whatever they hold."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _one_line(name: object) -> str:
    return " ".join(str(name).split())


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
