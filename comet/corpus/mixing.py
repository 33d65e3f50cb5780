"""The training stream: one endless sequence of documents, mixed over languages by temperature.

A language with n documents is drawn with probability p ∝ n^(1/τ): in proportion to its size at τ = 1,
nearer to uniform as τ grows, so that small languages are seen more often (arXiv 1907.05019).
"""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from comet.corpus.documents import Document, is_held_out, text_hash


class Cursor(Protocol):
    """A place in the endless training texts of one language."""

    def next(self) -> str:
        """Return the next text."""

    def state_dict(self) -> dict[str, Any]:
        """Return the place, as JSON can hold it."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state_dict` gave."""


class Source(Protocol):
    """The texts of one language, wherever they are."""

    language: str
    count: int | None
    weight: float

    def cursor(self, seed: int) -> Cursor:
        """Return a cursor at the start of the training texts."""

    def held_out(self, limit: int) -> list[str]:
        """Return up to `limit` texts that no cursor ever gives."""

    def fingerprint(self) -> str:
        """Return a line that is different for different texts."""


class InMemory:
    """Texts of one language held in memory, in an order that depends on the texts alone.

    Raises:
        ValueError: fewer than two distinct texts, so that none could be held out.
    """

    def __init__(self, language: str, texts: Sequence[str]) -> None:
        self.language = language
        self.count: int | None = len(texts)
        hashes = {text: text_hash(text) for text in texts}
        if len(hashes) < 2:
            raise ValueError(
                f"corpus: {language} has {len(hashes)} distinct documents, expected at least 2, "
                "as one is held out; in a .txt file each line is a document"
            )
        kept_out = {text for text, digest in hashes.items() if is_held_out(digest)}
        if len(kept_out) in (0, len(hashes)):  # a few texts that all fell on one side
            kept_out = {min(hashes, key=hashes.__getitem__)}
        ordered = sorted(texts, key=hashes.__getitem__)
        self._training = [text for text in ordered if text not in kept_out]
        self._held_out = sorted(kept_out, key=hashes.__getitem__)
        self._fingerprint = text_hash("\n".join(hashes[text] for text in ordered))
        self.weight = float(len(self._training))

    def cursor(self, seed: int) -> "ShuffledEpochs":
        """Return a cursor over shuffled epochs of the training texts."""
        return ShuffledEpochs(self._training, self.language, seed)

    def held_out(self, limit: int) -> list[str]:
        """Return the first held-out texts in the order of their hashes."""
        return self._held_out[:limit]

    def fingerprint(self) -> str:
        """Return a hash over all texts, whatever files they came in."""
        return self._fingerprint


class ShuffledEpochs:
    """All texts once, in an order drawn from seed, language and epoch; then again in another."""

    def __init__(self, texts: Sequence[str], language: str, seed: int) -> None:
        self._texts = texts
        self._key = (seed, *language.encode())
        self._start(epoch=0, position=0)

    def _start(self, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._order = shuffled_order(len(self._texts), *self._key, epoch)

    def next(self) -> str:
        """Return the next text."""
        if self._position == len(self._texts):
            self._start(self._epoch + 1, 0)
        self._position += 1
        return self._texts[self._order[self._position - 1]]

    def state_dict(self) -> dict[str, Any]:
        """Return epoch and position."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to an epoch and a position."""
        self._start(int(state["epoch"]), int(state["position"]))


def shuffled_order(length: int, *key: int) -> list[int]:
    """Return a permutation that depends on its length and key alone."""
    return np.random.default_rng(key).permutation(length).tolist()


class TextStream(Iterator[Document]):
    """The endless training stream; its place can be saved and restored exactly.

    Args:
        sources: one per language.
        temperature: τ above, a positive number.
        seed: decides languages and the order within each.
        fingerprint: of the corpus, so that a place is not restored in another one.
    """

    def __init__(
        self, sources: Sequence[Source], temperature: float, seed: int, fingerprint: str
    ) -> None:
        self._cursors = {source.language: source.cursor(seed) for source in sources}
        self._languages = tuple(self._cursors)
        largest = max(source.weight for source in sources)
        shares = [(source.weight / largest) ** (1 / temperature) for source in sources]
        self.probabilities = {
            language: share / sum(shares)
            for language, share in zip(self._languages, shares, strict=True)
        }
        self._thresholds = list(itertools.accumulate(self.probabilities.values()))[:-1]
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._fingerprint = fingerprint

    def __next__(self) -> Document:
        """Draw a language, then its next document."""
        drawn = bisect.bisect_right(self._thresholds, self._generator.random())
        language = self._languages[drawn]
        return Document(self._cursors[language].next(), language)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the stream: JSON-serialisable counters and generator state."""
        return {
            "corpus": self._fingerprint,
            "generator": self._generator.bit_generator.state,
            "cursors": {name: cursor.state_dict() for name, cursor in self._cursors.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state_dict` gave; the same next documents come.

        Raises:
            ValueError: the place was saved on another corpus.
        """
        if state["corpus"] != self._fingerprint:
            raise ValueError(
                f"corpus: got one with fingerprint {self._fingerprint[:12]}, but the saved position is "
                f"from {state['corpus'][:12]}; resume with the same corpus, or start a new run"
            )
        self._generator.bit_generator.state = state["generator"]
        for name, cursor in self._cursors.items():
            cursor.load_state_dict(state["cursors"][name])
