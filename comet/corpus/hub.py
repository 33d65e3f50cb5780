"""MADLAD-400 (arXiv 2309.04662) from the hub: read as it arrives, never held in memory whole.

The dataset's loading script is not run: its shards are plain gzipped JSON lines, and `datasets`
streams those. Order is shuffled block by block, which makes a place in the stream small and exact:
where the block began (`IterableDataset.state_dict` is exact while its own shuffling is not used)
and how much of it was given out.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from comet.corpus.documents import HELD_OUT_ONE_IN, is_held_out, language_code, text_hash
from comet.corpus.local import clean
from comet.corpus.mixing import shuffled_order

MADLAD_400 = "hf://datasets/allenai/MADLAD-400"
MADLAD_LANGUAGES = ("ha", "ig", "rw", "sw", "yo")
BLOCK = 2000  # documents shuffled together, for each language some 10 MB
_BYTES_PER_DOCUMENT = 2000  # compressed; a guess that matters only beside local sources

_logger = logging.getLogger(__name__)


class Streamed:
    """The clean shards of one language of MADLAD-400.

    Args:
        code: the language's folder, such as "ha".
        base: a folder or URL that holds LANG/LANG_clean_*.jsonl.gz.

    Raises:
        ValueError: the shards are not there or cannot be reached.
    """

    count: int | None = None

    def __init__(self, code: str, base: str) -> None:
        self.language = language_code(code)
        self.pattern = f"{base}/{code}/{code}_clean_*.jsonl.gz"
        self._files, size = _shards(self.pattern)
        self.weight = size / _BYTES_PER_DOCUMENT
        self._found: list[str] = []

    def cursor(self, seed: int) -> "ShuffledBlocks":
        """Return a cursor over shuffled blocks of the training texts."""
        return ShuffledBlocks(self, seed)

    def held_out(self, limit: int) -> list[str]:
        """Return the first held-out texts of the shards, all different.

        Raises:
            ValueError: there is none.
        """
        if len(self._found) < limit:
            distinct: dict[str, None] = {}
            for text in self.texts(self.dataset()):
                if is_held_out(text_hash(text)):
                    distinct[text] = None
                if len(distinct) == limit:
                    break
            self._found = list(distinct)
        if not self._found:
            raise ValueError(
                f"corpus: no document of {self.pattern} is held out (one in {HELD_OUT_ONE_IN} is); "
                "give these files to --corpus as a local folder, which holds out at least one"
            )
        return self._found[:limit]

    def fingerprint(self) -> str:
        """Return a hash of where the shards are; their content is not read for it."""
        return text_hash("\n".join(self._files))

    def dataset(self) -> Any:
        """Return a fresh `datasets.IterableDataset` over the shards, in order."""
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise ValueError("corpus: madlad400 needs: pip install datasets") from error
        with _reachable(self.pattern):
            return load_dataset("json", data_files=self._files, split="train", streaming=True)

    def texts(self, dataset: Any) -> Iterator[str]:
        """Read on from where the dataset stands, with the newlines that MADLAD writes as \\n."""
        skipped = 0
        with _reachable(self.pattern):
            for row in dataset:
                try:
                    text = row.get("text")
                    yield clean(text.replace("\\n", "\n") if isinstance(text, str) else text)
                except ValueError as error:
                    skipped += 1
                    if skipped == 1:
                        _logger.warning("corpus: skipping documents of %s: %s", self.pattern, error)


class ShuffledBlocks:
    """Training texts in blocks of `BLOCK`, each in an order drawn from seed, language and block."""

    def __init__(self, source: Streamed, seed: int) -> None:
        self._source = source
        self._key = (seed, *source.language.encode())
        self._open(None)
        self._index, self._position = -1, 0
        self._block: list[str] = []

    def _open(self, place: dict[str, Any] | None) -> None:
        """Stand where the next block begins; None is the start of the first shard."""
        self._dataset = self._source.dataset()
        if place is not None:
            self._dataset.load_state_dict(copy.deepcopy(place))
        texts = self._source.texts(self._dataset)
        self._texts = (text for text in texts if not is_held_out(text_hash(text)))
        self._began = self._next_begins = place

    def _read(self) -> None:
        block = list(islice(self._texts, BLOCK))
        if not block:  # the last shard has ended
            self._open(None)
            block = list(islice(self._texts, BLOCK))
        if not block:
            raise ValueError(f"corpus: {self._source.pattern} holds no document to train on")
        self._began, self._next_begins = self._next_begins, self._dataset.state_dict()
        order = shuffled_order(len(block), *self._key, self._index)
        self._block = [block[row] for row in order]

    def next(self) -> str:
        """Return the next text."""
        if self._position == len(self._block):
            self._index, self._position = self._index + 1, 0
            self._read()
        self._position += 1
        return self._block[self._position - 1]

    def state_dict(self) -> dict[str, Any]:
        """Return the block's number and beginning, and how much of it was given out."""
        return {"block": self._index, "began": self._began, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Read the block again and go on within it."""
        self._open(state["began"])
        self._index, self._position = int(state["block"]), int(state["position"])
        self._block = []
        if self._index >= 0:
            self._read()


def _shards(pattern: str) -> tuple[list[str], int]:
    """Find the addresses of the shards, and their size in bytes."""
    with _reachable(pattern):
        files, path = url_to_fs(pattern)
        found = files.glob(path, detail=True)
    if not found:
        raise ValueError(
            f"corpus: no shards at {pattern}; a language of MADLAD-400 is the name of a folder there, "
            f"such as {', '.join(MADLAD_LANGUAGES)}"
        )
    names = sorted(found)
    return [files.unstrip_protocol(name) for name in names], sum(found[n]["size"] for n in names)


@contextmanager
def _reachable(pattern: str) -> Iterator[None]:
    """Turn whatever the network, the hub or a damaged shard raises into one line with a remedy.

    The libraries below raise errors of their own HTTP client, which changes between versions.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"corpus: cannot read {pattern} ({reason}); without the hub, give local .jsonl.gz or .txt "
            "files or a folder LANG/*.jsonl.gz to --corpus, or use --corpus toy"
        ) from error
