"""The training stream: one endless sequence of documents, mixed over languages by temperature.

A language with n documents is drawn with probability p ∝ n^(1/τ): in proportion to its size at τ = 1,
nearer to uniform as τ grows, so that small languages are seen more often (arXiv 1907.05019).
"""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from comet.corpus.documents import Document


class Cursor(Protocol):
    """A place in the endless training texts of one language."""

    def next(self) -> str:
        """Return the next text."""

    def state_dict(self) -> dict[str, Any]:
        """Return the place, as JSON can hold it."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state_dict` gave."""


class Source(Protocol):
    """The texts of one language, wherever they are.

    Attributes:
        language: its three-letter code.
        count: how many there are, held-out ones included; None where nobody counted.
        weight: how many there are to train on, an estimate where nobody counted.
    """

    language: str
    count: int | None
    weight: float

    def cursor(self, seed: int, stream: int, streams: int) -> Cursor:
        """Return a cursor at the start of one of several streams, which share the training texts among them."""

    def held_out(self, limit: int) -> list[str]:
        """Return up to `limit` texts that no cursor ever gives."""

    def fingerprint(self) -> str:
        """Return a line that is different for different texts."""

    def earlier_fingerprint(self) -> str:
        """Return what earlier versions did, which streamed text without a look at its content."""

    def times(self) -> str:
        """Return a line that is different for files written at other times, if their content was not read whole."""


def probabilities(sources: Sequence[Source], temperature: float) -> dict[str, float]:
    """How often each language is drawn.

    Args:
        sources: one per language.
        temperature: τ above, a positive number.
    """
    largest = max(source.weight for source in sources)
    shares = {source.language: (source.weight / largest) ** (1 / temperature) for source in sources}
    total = sum(shares.values())
    return {language: share / total for language, share in shares.items()}


class TextStream(Iterator[Document]):
    """One of the endless training streams; its place can be saved and restored exactly.

    Args:
        sources: one per language.
        temperature: τ above, a positive number.
        seed: decides languages and the order within each.
        fingerprints: of the corpus, so that a place is not restored in another one: today's, and that of earlier
            versions.
        stream: which of the streams.
        streams: how many share the text.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        temperature: float,
        seed: int,
        fingerprints: tuple[str, str],
        stream: int = 0,
        streams: int = 1,
    ) -> None:
        self._cursors = {
            source.language: source.cursor(seed, stream, streams) for source in sources
        }
        self._languages = tuple(self._cursors)
        self.probabilities = probabilities(sources, temperature)
        self._thresholds = list(itertools.accumulate(self.probabilities.values()))[:-1]
        self._generator = np.random.Generator(np.random.PCG64([seed, stream]))
        self._fingerprints = fingerprints

    def __next__(self) -> Document:
        """Draw a language, then its next document."""
        drawn = bisect.bisect_right(self._thresholds, self._generator.random())
        language = self._languages[drawn]
        return Document(self._cursors[language].next(), language)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the stream: JSON-serialisable counters and generator state."""
        return {
            "corpus": self._fingerprints[0],
            "generator": self._generator.bit_generator.state,
            "cursors": {name: cursor.state_dict() for name, cursor in self._cursors.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state_dict` gave; the same next documents come.

        Raises:
            ValueError: the place was saved on another corpus.
        """
        if state["corpus"] not in self._fingerprints:
            raise ValueError(
                f"corpus: got one with fingerprint {self._fingerprints[0][:12]}, but the saved position is "
                f"from {state['corpus'][:12]}; resume with the same corpus, or start a new run"
            )
        self._generator.bit_generator.state = state["generator"]
        for name, cursor in self._cursors.items():
            cursor.load_state_dict(state["cursors"][name])
