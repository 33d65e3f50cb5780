"""From documents to masked rows: pools of sequences, tokenised, grouped by length, cut into batches.

A pool is a run of documents that is chosen by their characters alone, so that a process which makes only some of the
pools still knows where each begins. Sequences of similar length share a batch, so little is padded, and every sequence
is in one.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from tokenizers import Tokenizer

from comet.corpus import Corpus, Document
from comet.corpus.problems import Problem
from comet.masking import MaskedRows, TokenMasking

if TYPE_CHECKING:  # a background worker has no need of transformers
    from transformers import PreTrainedTokenizerFast

POOL_BATCHES = 32
_CHARACTERS_PER_TOKEN = 4  # decides how large a pool becomes, and nothing else


@dataclass(frozen=True)
class BatchLimits:
    """How large a stream's batches may be.

    Attributes:
        sequences: at most this many; ignored where there are `tokens`.
        tokens: at most this many, padding included.
        max_length: tokens per sequence, special tokens included.
    """

    sequences: int
    tokens: int | None
    max_length: int

    @property
    def fewest(self) -> int:
        """How many sequences every batch has at least."""
        if self.tokens is None:
            return max(1, self.sequences - -(-self.sequences // 10))
        return (self.tokens // self.max_length + 1) // 2

    def needed(self, pieces: int) -> int:
        """The lowest limit, of sequences or tokens, at which `fewest` is `pieces` or more."""
        if self.tokens is None:
            return pieces if pieces == 1 else -(-pieces * 10 // 9)
        return (2 * pieces - 1) * self.max_length

    def share(self, text: str) -> float:
        """How much of a batch a document fills, by a guess at its tokens."""
        tokens = len(text) // _CHARACTERS_PER_TOKEN
        sequences = 1 + tokens // (self.max_length - 2)
        if self.tokens is None:
            return sequences / self.sequences
        return (tokens + 2 * sequences) / self.tokens

    def cut(self, lengths: Sequence[int]) -> list[int]:
        """Cut sequences, the longest first, into batches of similar size; return where each begins.

        Args:
            lengths: tokens of each sequence, descending.
        """
        count = len(lengths)
        if self.tokens is None:
            batches = -(-count // self.sequences)
            return [count * number // batches for number in range(batches)]
        starts = [0]
        for row in range(1, count):
            if (row + 1 - starts[-1]) * lengths[starts[-1]] > self.tokens:
                starts.append(row)
        if len(starts) > 1 and count - starts[-1] < starts[-1] - starts[-2]:
            starts[-1] = (starts[-2] + count + 1) // 2  # else a few short ones could be left alone
        return starts

    def enough(self, count: int) -> int:
        """How many sequences a pool of `count` needs, so that each of its batches has the fewest."""
        batches = 1 if self.tokens is not None else -(-count // self.sequences)
        return max(count, batches * self.fewest)


@dataclass(frozen=True)
class PoolPlace:
    """Where a pool begins.

    Attributes:
        number: of the pool.
        text: position of the text stream.
    """

    number: int
    text: Mapping[str, Any]


@dataclass(frozen=True)
class Pool:
    """Batches made of one run of documents.

    Attributes:
        place: where it began.
        following: where the next one begins.
        batches: masked, each with its longest row first.
        problems: what could not be read since the last pool this came with.
    """

    place: PoolPlace
    following: PoolPlace
    batches: list[MaskedRows]
    problems: list[Problem]


@dataclass(frozen=True)
class PoolMaker:
    """Makes the pools of one stream, in this process or another.

    Attributes:
        corpus: the text.
        stream: which of its streams.
        tokenizer: cuts and numbers the pieces.
        masking: hides some of them.
        limits: of a batch.
    """

    corpus: Corpus
    stream: int
    tokenizer: Tokenizer
    masking: TokenMasking
    limits: BatchLimits

    def start(self) -> PoolPlace:
        """The place of the first pool."""
        return PoolPlace(0, self.corpus.training_stream(self.stream).state_dict())

    def pools(self, place: PoolPlace, worker: int = 0, workers: int = 1) -> Iterator[Pool]:
        """Make pools from a place on, without end.

        Args:
            place: where to begin.
            worker: which pools to make: those whose number leaves this remainder.
            workers: when it is divided by this.

        Raises:
            ValueError: the text cannot be read.
        """
        stream = self.corpus.training_stream(self.stream)
        stream.load_state_dict(place.text)
        while True:
            documents: list[Document] = []
            filled = 0.0
            while filled < POOL_BATCHES:
                documents.append(next(stream))
                filled += self.limits.share(documents[-1].text)
            following = PoolPlace(place.number + 1, stream.state_dict())
            if place.number % workers == worker:
                # every worker reads all of the text; one tells what it could not read
                problems = self.corpus.problems.latest() if worker == 0 else []
                yield Pool(place, following, self._batches(documents, place.number), problems)
            place = following

    def _batches(self, documents: Sequence[Document], number: int) -> list[MaskedRows]:
        texts = [document.text for document in documents]
        language = {name: index for index, name in enumerate(self.corpus.languages)}
        rows = [
            (ids, language[document.language])
            for document, sequences in zip(
                documents, encode(self.tokenizer, texts, self.limits.max_length), strict=True
            )
            for ids in sequences
        ]
        random = np.random.default_rng([self.masking.seed, self.stream, number])
        rows = [rows[row] for row in random.permutation(len(rows))]
        # only a pool of long documents with next to no tokens reads some sequences twice
        rows = list(itertools.islice(itertools.cycle(rows), self.limits.enough(len(rows))))
        rows.sort(key=lambda row: len(row[0]), reverse=True)
        starts = self.limits.cut([len(ids) for ids, _ in rows])
        batches = [rows[start:end] for start, end in itertools.pairwise([*starts, len(rows)])]
        return [
            self.masking.rows(
                [ids for ids, _ in batches[index]],
                [spoken for _, spoken in batches[index]],
                (self.stream, number, position),
            )
            for position, index in enumerate(random.permutation(len(batches)))
        ]


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[list[list[int]]]:
    """Token ids of texts, each cut into sequences.

    Args:
        tokenizer: left without truncation and padding.
        texts: documents.
        max_length: tokens per sequence, special tokens included.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    encoded = tokenizer.encode_batch_fast(list(texts))
    tokenizer.no_truncation()
    return [[one.ids, *(rest.ids for rest in one.overflowing)] for one in encoded]


def tokenise(
    tokenizer: Union["PreTrainedTokenizerFast", Tokenizer],
    texts: Sequence[str],
    max_length: int,
    *,
    cut: bool = True,
) -> list[list[int]]:
    """Token ids with special tokens, at most `max_length` each.

    Args:
        tokenizer: a fast tokenizer, or what it is built on.
        texts: documents.
        max_length: tokens per sequence, special tokens included.
        cut: make several sequences of a longer document; otherwise keep its beginning only.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    encoded = encode(backend, texts, max_length)
    return [ids for sequences in encoded for ids in (sequences if cut else sequences[:1])]
