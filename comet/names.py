"""Names from data, models and flags that become paths: one component each, and nothing that leads elsewhere."""

import re
from pathlib import Path

_LONGEST = 200  # bytes; file systems take 255, and a name gets endings such as ".partial"
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices of Windows
_FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')


def path_component(name: object, source: str) -> str:
    """Check that a name can be that of one file or folder, on every system, and return it.

    Args:
        name: a language, a label, a system, a file listed in an index, ...
        source: what it is and where it is from, as the message begins.

    Raises:
        ValueError: it is no text, empty, hidden, too long or reserved, or has separators or control characters.
    """
    why = _unfit(name)
    if why is not None:
        raise ValueError(
            f"{source}: got {_shown(name)}, which cannot be the name of a file or folder ({why})"
        )
    return str(name)


def path_inside(folder: Path, relative: object, source: str) -> Path:
    """The path that is named relative to a folder, each of its parts a `path_component`.

    Raises:
        ValueError: one is none.
    """
    parts = relative.split("/") if isinstance(relative, str) else [relative]
    return folder.joinpath(*(path_component(part, source) for part in parts))


def _unfit(name: object) -> str | None:
    """Why a name is refused."""
    if not isinstance(name, str):
        return "it is no text"
    if not name.strip():
        return "it is empty"
    if found := _FORBIDDEN.search(name):
        return f"it has a {found[0]!r}"
    if name[0] == ".":
        return "it begins with a dot"
    if name != name.strip() or name[-1] == ".":
        return "it begins or ends with a space or a dot"
    if _RESERVED.fullmatch(name):
        return "Windows reserves it"
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "it has half of a surrogate pair"
    return None if length <= _LONGEST else f"it has more than {_LONGEST} bytes"


def _shown(name: object) -> str:
    text = ascii(name)
    return text if len(text) <= 80 else f"{text[:77]}..."
