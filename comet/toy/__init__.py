"""The built-in toy corpus: five languages from word lists and patterns written for this project.

It lets the whole path from corpus to student run in minutes without a network. Each language has
eighteen activities (see `comet.toy.grammar`) and eight sentence patterns; a call draws from all
patterns in turn, so that none is drowned by one that has many combinations.
"""

import random
from collections.abc import Callable
from functools import cache
from itertools import islice, zip_longest

from comet.toy.grammar import Language
from comet.toy.hausa import Hausa
from comet.toy.igbo import Igbo
from comet.toy.kinyarwanda import Kinyarwanda
from comet.toy.swahili import Swahili
from comet.toy.yoruba import Yoruba

LANGUAGES = ("hau", "ibo", "kin", "swa", "yor")
_GRAMMARS: dict[str, Callable[[], Language]] = {
    "hau": Hausa,
    "ibo": Igbo,
    "kin": Kinyarwanda,
    "swa": Swahili,
    "yor": Yoruba,
}


@cache
def _grammar(language: str) -> Language:
    return _GRAMMARS[language]()


def toy_sentences(language: str, count: int, seed: int = 0) -> list[str]:
    """Draw distinct sentences of one language, the same ones for the same seed on every machine.

    Args:
        language: one of `LANGUAGES`.
        count: how many sentences, at most as many as the patterns give (some tens of thousands).
        seed: which sentences and in which order.

    Returns:
        `count` distinct sentences in Unicode's composed form (NFC).

    Raises:
        ValueError: the language is not there, or the count is negative or above what there is.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language: got {language!r}, expected one of {', '.join(LANGUAGES)}")
    patterns = _grammar(language).patterns
    available = sum(map(len, patterns))
    if not 0 <= count <= available:
        raise ValueError(
            f"count: got {count}, expected 0 to {available}, the distinct sentences of {language!r}"
        )
    # Only random() is promised to give the same numbers in every Python version; shuffle() is not.
    generator = random.Random(f"{language} {seed}")
    shuffled = [sorted(pattern, key=lambda _: generator.random()) for pattern in patterns]
    in_turn = (s for turn in zip_longest(*shuffled) for s in turn if s is not None)
    sentences = list(islice(in_turn, count))
    return sorted(sentences, key=lambda _: generator.random())
