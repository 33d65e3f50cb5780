"""Texts of one language that are read as they are needed, never held in memory whole.

Every epoch reads the files in another order, and shuffles the documents block by block. A place is small and exact:
the epoch, the line where the block began, and how much of the block was given out; the block is read again from there.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from comet.corpus.connection import is_remote
from comet.corpus.documents import HELD_OUT_ONE_IN, is_held_out, text_hash
from comet.corpus.lines import Shard, documents, estimated_documents
from comet.corpus.memory import shuffled_order
from comet.corpus.problems import Problems

_SHARDS, _BLOCK = 0, 1  # what an order is drawn for


class Streamed:
    """The files of one language, on the hub or on a disk.

    Args:
        language: its code.
        shards: the files.
        block: documents shuffled together.
        problems: where what cannot be read is counted.

    Raises:
        ValueError: the files cannot be reached.
    """

    count: int | None = None

    def __init__(
        self, language: str, shards: Sequence[Shard], block: int, problems: Problems
    ) -> None:
        self.language = language
        self.shards = tuple(shards)
        self.block = block
        self.problems = problems
        self.weight = estimated_documents(self.shards) * (1 - 1 / HELD_OUT_ONE_IN)
        self._found: list[str] = []

    def cursor(self, seed: int, stream: int, streams: int) -> "ShuffledBlocks":
        """Return a cursor over shuffled blocks of one stream's share of the training texts."""
        return ShuffledBlocks(self, seed, stream, streams)

    def held_out(self, limit: int) -> list[str]:
        """Return the first held-out texts of the files, all different.

        Raises:
            ValueError: there is none.
        """
        if len(self._found) < limit:
            distinct: dict[str, str] = {}
            for text in self._texts():
                digest = text_hash(text)
                if is_held_out(digest):
                    distinct.setdefault(digest, text)
                if len(distinct) == limit:
                    break
            self._found = list(distinct.values())
        if not self._found:
            problem = self.problems.example(shard.address for shard in self.shards)
            remedy = (
                "give more text, or give its files as a local folder, with corpus.in_memory above their size"
                if problem is None
                else f"not all of its text can be read: {problem}; replace that file, or give more text"
            )
            raise ValueError(
                f"corpus: no document of {self.language} is held out (one in {HELD_OUT_ONE_IN} is); {remedy}"
            )
        return self._found[:limit]

    def fingerprint(self) -> str:
        """Return a hash of names, sizes and versions of the files."""
        return self._fingerprint([shard.version for shard in self.shards])

    def earlier_fingerprint(self) -> str:
        """Return what `fingerprint` gave before it read the content of local files.

        Of MADLAD-400's shards on a disk it gives another one, as their newlines were not read as such then.
        """
        return self._fingerprint(
            [
                shard.version if is_remote(shard.address) or shard.is_madlad else ""
                for shard in self.shards
            ]
        )

    def _fingerprint(self, versions: Sequence[str]) -> str:
        names = ("/".join(shard.address.split("/")[-2:]) for shard in self.shards)
        kept = zip(names, self.shards, versions, strict=True)
        return text_hash(
            "\n".join(f"{name} {shard.size} {version}" for name, shard, version in kept)
        )

    def times(self) -> str:
        """Return the times of files of which blocks alone were read."""
        return " ".join(str(shard.time) for shard in self.shards if shard.time)

    def _texts(self) -> Iterator[str]:
        for shard in self.shards:
            for line in documents(shard, self.problems):
                yield line.text


class ShuffledBlocks:
    """One stream's share of the training texts: whole files where they divide evenly, every n-th line otherwise."""

    def __init__(self, source: Streamed, seed: int, stream: int, streams: int) -> None:
        self._source = source
        self._key = (seed, stream, *source.language.encode())
        whole_files = len(source.shards) % streams == 0
        self._shards = source.shards[stream::streams] if whole_files else source.shards
        self._part = (0, 1) if whole_files else (stream, streams)
        self._index, self._position = -1, 0
        self._open(0, (0, 0))

    def _open(self, epoch: int, place: tuple[int, int]) -> None:
        """Stand where the next block of an epoch begins: at a file of its order, behind a line."""
        self._epoch = epoch
        self._block: list[str] = []
        self._began = self._reached = place
        self._lines = self._read(place)

    def _read(self, place: tuple[int, int]) -> Iterator[str]:
        """Training texts of the epoch from a place on; `_reached` says where the latest one stood."""
        order = shuffled_order(len(self._shards), *self._key, _SHARDS, self._epoch)
        for number in range(place[0], len(order)):
            start = place[1] if number == place[0] else 0
            shard = self._shards[order[number]]
            for line in documents(shard, self._source.problems, start, *self._part):
                if not is_held_out(text_hash(line.text)):
                    self._reached = (number, line.number)
                    yield line.text

    def _fill(self) -> None:
        """Read the next block."""
        self._block = []
        self._began = self._reached
        block = list(islice(self._lines, self._source.block))
        if not block:
            self._open(self._epoch + 1, (0, 0))
            block = list(islice(self._lines, self._source.block))
        if not block:
            problem = self._source.problems.example(shard.address for shard in self._shards)
            example = "" if problem is None else f" ({problem})"
            raise ValueError(f"corpus: {self._source.language} has nothing to train on{example}")
        order = shuffled_order(len(block), *self._key, _BLOCK, self._epoch, self._index)
        self._block = [block[row] for row in order]

    def next(self) -> str:
        """Return the next text.

        Raises:
            ValueError: the files hold nothing to train on, or cannot be reached.
        """
        if self._position == len(self._block):
            self._index, self._position = self._index + 1, 0
            self._fill()
        self._position += 1
        return self._block[self._position - 1]

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the block's number and beginning, and how much of it was given out."""
        return {
            "epoch": self._epoch,
            "block": self._index,
            "began": list(self._began),
            "position": self._position,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Read the block again and go on within it."""
        began = state["began"]
        self._open(int(state["epoch"]), (int(began[0]), int(began[1])))
        self._index, self._position = int(state["block"]), int(state["position"])
        if self._index >= 0:
            self._fill()
