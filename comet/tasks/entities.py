"""Named entities as spans of words: what BIO tags stand for (Ramshaw and Marcus, 1995).

B-PER begins an entity, I-PER goes on with it. An I- that follows no entity of its type begins one, as in conlleval.
"""

from collections.abc import Sequence
from typing import NamedTuple

OUTSIDE = "O"


class Span(NamedTuple):
    """An entity.

    Attributes:
        type: such as "PER".
        start: its first word, counted from 0.
        end: the word after its last.
    """

    type: str
    start: int
    end: int


def is_bio(tag: str) -> bool:
    """Whether a tag is O, B-TYPE or I-TYPE."""
    return tag == OUTSIDE or (tag[:2] in ("B-", "I-") and len(tag) > 2)


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities of one sentence, in order.

    Args:
        tags: one for each word.
    """
    found = []
    start, kind = 0, ""
    for place, tag in enumerate((*tags, OUTSIDE)):
        assert is_bio(tag), tag
        if kind and tag != f"I-{kind}":
            found.append(Span(kind, start, place))
            kind = ""
        if tag != OUTSIDE and not kind:
            start, kind = place, tag[2:]
    return found


def types(labels: Sequence[str]) -> tuple[str, ...]:
    """The types that tags name, each once, in order."""
    return tuple(dict.fromkeys(label[2:] for label in labels if label != OUTSIDE))
