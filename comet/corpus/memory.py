"""Texts of one language held in memory: packed, and shared with the processes that read them too."""

import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import context, reduction
from typing import IO, Any

import numpy as np

from comet.corpus.documents import content_hash, is_held_out, text_hash


class PackedTexts(Sequence[str]):
    """A sequence of texts as UTF-8 in one piece of memory, which a process that is started sees without a copy.

    Args:
        file: where they are, one behind the other.
        ends: `[N]` int64, where each ends.
    """

    def __init__(self, file: IO[bytes], ends: np.ndarray) -> None:
        self._file = file
        self._ends = ends
        self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @classmethod
    def pack(cls, texts: Iterator[str]) -> "PackedTexts":
        """Copy texts to a place of their own."""
        file = _memory()
        lengths = [file.write(text.encode()) for text in texts]
        file.write(b"\n")  # what is empty cannot be mapped
        file.flush()
        return cls(file, np.cumsum(lengths, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].decode()

    def __reduce__(self) -> tuple[Any, ...]:
        if context.get_spawning_popen() is None:
            return _copied, (list(self),)
        return _shared, (reduction.DupFd(self._file.fileno()), self._ends)


def _memory() -> IO[bytes]:
    """Memory that has a file's number, by which another process can be given it."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("comet-texts"), "w+b")
    return tempfile.TemporaryFile()


def _copied(texts: list[str]) -> PackedTexts:
    return PackedTexts.pack(iter(texts))


def _shared(number: Any, ends: np.ndarray) -> PackedTexts:
    return PackedTexts(os.fdopen(number.detach(), "rb"), ends)


class InMemory:
    """Texts of one language, in an order that depends on the texts alone.

    Args:
        language: its code.
        texts: all of them; copies of a text stay together when some are held out, in whichever normal form they are.

    Raises:
        ValueError: fewer than two distinct texts, so that none could be held out.
    """

    def __init__(self, language: str, texts: Sequence[str]) -> None:
        self.language = language
        self.count: int | None = len(texts)
        hashes = {text: text_hash(text) for text in texts}
        distinct = set(hashes.values())
        if len(distinct) < 2:
            raise ValueError(
                f"corpus: {language} has {len(distinct)} distinct documents, expected at least 2, "
                "as one is held out; in a .txt file each line is a document"
            )
        kept_out = set(filter(is_held_out, distinct))
        if len(kept_out) in (0, len(distinct)):  # a few texts that all fell on one side
            kept_out = {min(distinct)}
        ordered = sorted(texts, key=lambda text: (hashes[text], text))
        self._training = PackedTexts.pack(text for text in ordered if hashes[text] not in kept_out)
        evaluated = {hashes[text]: text for text in reversed(ordered) if hashes[text] in kept_out}
        self._held_out = [evaluated[digest] for digest in sorted(evaluated)]
        self._fingerprint = content_hash("\n".join(map(content_hash, ordered)))
        self.weight = float(len(self._training))

    def cursor(self, seed: int, stream: int, streams: int) -> "ShuffledEpochs":
        """Return a cursor over shuffled epochs of one stream's share of the training texts.

        Raises:
            ValueError: there are fewer texts than streams.
        """
        if len(self._training) < streams:
            raise ValueError(
                f"corpus.streams: got {streams}, but {self.language} has {len(self._training)} documents to "
                "train on; lower it"
            )
        share = range(stream, len(self._training), streams)
        return ShuffledEpochs(self._training, share, (seed, stream, *self.language.encode()))

    def held_out(self, limit: int) -> list[str]:
        """Return the first held-out texts in the order of their hashes."""
        return self._held_out[:limit]

    def fingerprint(self) -> str:
        """Return a hash over all texts, whatever files they came in."""
        return self._fingerprint

    def earlier_fingerprint(self) -> str:
        """Return the same: it always read all texts."""
        return self._fingerprint

    def times(self) -> str:
        """Return nothing, as all texts were read."""
        return ""


class ShuffledEpochs:
    """A share of the texts once, in an order drawn from a key and the epoch; then again in another."""

    def __init__(self, texts: Sequence[str], share: range, key: tuple[int, ...]) -> None:
        self._texts = texts
        self._share = share
        self._key = key
        self._start(0, 0)

    def _start(self, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._order = shuffled_order(len(self._share), *self._key, epoch)

    def next(self) -> str:
        """Return the next text."""
        if self._position == len(self._share):
            self._start(self._epoch + 1, 0)
        self._position += 1
        return self._texts[self._share[self._order[self._position - 1]]]

    def state_dict(self) -> dict[str, Any]:
        """Return epoch and position."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to an epoch and a position."""
        self._start(int(state["epoch"]), int(state["position"]))


def shuffled_order(length: int, *key: int) -> np.ndarray:
    """Return a permutation that depends on its length and key alone."""
    return np.random.default_rng(key).permutation(length)
