"""Format numbers of what is saved: what an older version wrote is read, what a newer one wrote is refused by name."""

from collections.abc import Mapping
from typing import Any

import comet


class NewerFormatError(ValueError):
    """A later version of Comet wrote it."""


def stamp(number: int) -> dict[str, Any]:
    """The entries that say how something is saved, and by which version."""
    return {"format": number, "comet": comet.__version__}


def require_known_format(what: str, content: Mapping[str, Any], newest: int) -> int:
    """The format number of saved content; 1 where it names none, as before there were several.

    Args:
        what: begins the message: flag and path, or path alone.
        content: of the file that has the stamp.
        newest: the highest number that this version reads.

    Raises:
        NewerFormatError: it has a higher one.
        ValueError: it has none that could be.
    """
    found = content.get("format", 1)
    if type(found) is not int or found < 1:
        raise ValueError(f"{what} has format {found!r}, expected a number from 1 to {newest}")
    if found > newest:
        by = content.get("comet")
        writer = f"Comet {by}" if isinstance(by, str) else "a later version of Comet"
        raise NewerFormatError(
            f"{what} has format {found}, written by {writer}; this is Comet {comet.__version__}, which reads formats "
            f"up to {newest}: update it"
        )
    return found
