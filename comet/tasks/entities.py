"""Named entities as spans of words: what BIO tags stand for (Ramshaw and Marcus, 1995).

B-PER begins an entity, I-PER goes on with it. An I- that follows no entity of its type begins one, as in conlleval.

Other schemes are told by their tags and turned into BIO: IOBES and BILOU mark the last word (E-, L-) and the only word
(S-, U-) of an entity; in IOB1 an entity begins with I-, and with B- only where one of its type comes right before it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"
_OTHER_SCHEMES = {"IOBES": {"S": "B", "E": "I"}, "BILOU": {"U": "B", "L": "I"}}
_LEAST_SHARE = 0.05  # of an entity's tags that are of another scheme alone; fewer are errors


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


def scheme_of(sentences: Iterable[Sequence[str]]) -> str:
    """The scheme that sentences are tagged in: "BIO", "IOBES", "BILOU" or "IOB1"."""
    letters: Counter[str] = Counter()
    begins_inside = begins_apart = False
    for tags in sentences:
        before = OUTSIDE
        for tag in tags:
            if tag[1:2] == "-":
                letters[tag[0]] += 1
                follows = before[1:2] == "-" and before[2:] == tag[2:]
                begins_inside |= tag[0] == "I" and not follows
                begins_apart |= tag[0] == "B" and not follows
            before = tag
    for scheme, other in _OTHER_SCHEMES.items():
        if sum(letters[letter] for letter in other) > _LEAST_SHARE * letters.total():
            return scheme
    return "IOB1" if begins_inside and not begins_apart else "BIO"


def as_bio(tags: Sequence[str], scheme: str) -> tuple[str, ...]:
    """The tags of one sentence in BIO.

    Args:
        tags: one for each word.
        scheme: as of `scheme_of`.
    """
    if scheme == "BIO":
        return tuple(tags)
    other = _OTHER_SCHEMES.get(scheme, {})
    found: list[str] = []
    for tag in tags:
        letter = other.get(tag[0], tag[0]) if tag[1:2] == "-" else ""
        if letter == "I" and not (found and found[-1] in (f"B-{tag[2:]}", f"I-{tag[2:]}")):
            letter = "B"
        found.append(f"{letter}{tag[1:]}" if letter else tag)
    return tuple(found)


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
