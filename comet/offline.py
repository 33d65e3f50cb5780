"""Whether the hub can be reached: tried once, so that a machine without a network says at once what it lacks."""

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

_SECONDS = 5.0


def unreachable() -> str | None:
    """Why the hub cannot be reached; None where it can. Each endpoint is tried once in a process."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return _tried(constants.ENDPOINT)


def is_not_here(error: BaseException) -> bool:
    """Whether a library failed as something is not in the hub's cache of this machine."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def offline_remedy(name: str) -> str:
    """What to do about a model or data set that is not here."""
    return (
        f"fetch it where there is a network (`hf download {name}`), and give that folder or copy the cache of the hub "
        f"({constants.HF_HUB_CACHE})"
    )


@contextlib.contextmanager
def offline_where_unreachable() -> Iterator[None]:
    """Let the libraries read from their caches alone where the hub cannot be reached, instead of retrying for long."""
    if unreachable() is None:
        yield
        return
    places: list[Any] = [constants]
    if hasattr(sys.modules.get("datasets"), "config"):
        places.append(sys.modules["datasets"].config)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


@functools.cache
def _tried(endpoint: str) -> str | None:
    try:
        get_session().head(endpoint, timeout=_SECONDS)
    except Exception as error:  # of an HTTP client that changes between versions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"{endpoint} cannot be reached ({reason})"
    return None
