"""From labelled examples to batches: tokenised once, grouped by length, in an order that the seed and the epoch give.

A text is one sequence, labelled at its first token. A sentence of words is one too, or several where it is long;
each word is labelled at its first piece. Elsewhere labels are −100, as for a text that is there to be imitated on.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from comet.batch import Batch, piece_of
from comet.masking import IGNORED_LABEL
from comet.pools import tokenise
from comet.tasks import Example

WORDS_VERSION = b"2"  # of how words become tokens; 1: without the space in front of them
POOL_BATCHES = 64  # so many batches of examples are sorted by length together


@dataclass(frozen=True)
class Row:
    """A sequence as a model reads it.

    Attributes:
        ids: of its tokens, special ones included.
        positions: of the labelled ones.
        labels: of those; −100 for a text that has none.
        example: which one this is of, its place in the list that was encoded.
        items: which of that example's labels these are: 0 for a text, the words of a sentence otherwise.
        language: its place in the list of languages.
        soft: the probability of each label, `[L]`, where those are imitated.
    """

    ids: Sequence[int]
    positions: Sequence[int]
    labels: Sequence[int]
    example: int
    items: Sequence[int]
    language: int
    soft: np.ndarray | None = None


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    languages: Sequence[str] | None = None,
) -> list[Row]:
    """Tokenise examples, all of one kind.

    Args:
        examples: texts, cut off after `max_length` tokens, or sentences of words, cut into several rows.
        tokenizer: of the model.
        max_length: tokens per row, special ones included.
        languages: what rows are numbered by; None for the examples' own in alphabetical order. An example of another
            language has number 0.
    """
    if languages is None:
        languages = sorted({example.language for example in examples})
    number_of = {language: number for number, language in enumerate(languages)}
    spoken = [number_of.get(example.language, 0) for example in examples]
    if examples and not isinstance(examples[0].text, str):
        return _encode_words(examples, tokenizer, max_length, spoken)
    texts = [example.text for example in examples if isinstance(example.text, str)]
    return [
        Row(ids, (0,), (_only(example),), number, (0,), language)
        for number, (ids, example, language) in enumerate(
            zip(tokenise(tokenizer, texts, max_length, cut=False), examples, spoken, strict=True)
        )
    ]


def _only(example: Example) -> int:
    assert isinstance(example.label, int)
    return example.label


def _encode_words(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    spoken: Sequence[int],
) -> list[Row]:
    """Rows of as many whole words as fit; a word without pieces is in none, and of an overlong one its beginning is."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    specials = list(tokenizer("").input_ids)  # what stands around a sentence
    before, after = specials[:1], specials[1:]
    room = max_length - len(specials)
    sentences = [list(example.text) for example in examples]
    if _needs_spaces(tokenizer):
        sentences = [[*words[:1], *(f" {word}" for word in words[1:])] for words in sentences]
    # the fast way to encode does not tell which word a piece is of
    encoded = backend.encode_batch(sentences, is_pretokenized=True, add_special_tokens=False)
    rows: list[Row] = []
    for number, (one, example) in enumerate(zip(encoded, examples, strict=True)):
        assert isinstance(example.label, tuple)
        pieces: dict[int, list[int]] = {}
        for word, piece in zip(one.word_ids, one.ids, strict=True):
            pieces.setdefault(word, []).append(piece)
        for words in _fitting(pieces, room):
            ids, positions = list(before), []
            for word in words:
                positions.append(len(ids))
                ids += pieces[word][:room]
            labels = [example.label[word] for word in words]
            rows.append(Row([*ids, *after], positions, labels, number, words, spoken[number]))
    return rows


def _needs_spaces(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether words given one by one have to bring the space between them to be read as in running text.

    So it is with byte-level BPE without `add_prefix_space`, whose tokens hold the space in front of a word.
    """

    def ids(text: str | list[str]) -> list[int]:
        is_split = not isinstance(text, str)
        encoded = tokenizer.backend_tokenizer.encode(
            text, is_pretokenized=is_split, add_special_tokens=False
        )
        return list(encoded.ids)

    running = ids("a a")
    return ids(["a", "a"]) != running and ids(["a", " a"]) == running


def _fitting(pieces: dict[int, list[int]], room: int) -> Iterator[list[int]]:
    """Words in order, as many at a time as have room."""
    words: list[int] = []
    filled = 0
    for word, its in pieces.items():
        size = min(len(its), room)
        if words and filled + size > room:
            yield words
            words, filled = [], 0
        words.append(word)
        filled += size
    if words:
        yield words


def collate(rows: Sequence[Row], padding: int) -> Batch:
    """Rows side by side, padded to the longest."""
    lengths = np.array([len(row.ids) for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(real.shape, padding, dtype=np.int64)
    ids[real] = np.concatenate([np.asarray(row.ids) for row in rows])
    labels = np.full(real.shape, IGNORED_LABEL, dtype=np.int64)
    for line, row in zip(labels, rows, strict=True):
        line[list(row.positions)] = row.labels
    length = real.shape[1]
    positions = [n * length + place for n, row in enumerate(rows) for place in row.positions]
    soft = [row.soft for row in rows if row.soft is not None]
    return Batch(
        input_ids=_tensor(ids),
        mask=None if real.all() else _tensor(real),
        kd_positions=_tensor(np.array(positions, dtype=np.int64)),
        masked_positions=_tensor(np.flatnonzero(labels != IGNORED_LABEL)),
        labels=_tensor(labels),
        languages=_tensor(np.array([row.language for row in rows])),
        tokens=int(lengths.sum()),
        squared_lengths=int((lengths**2).sum()),
        soft_labels=None if not soft else _tensor(np.stack(soft).astype(np.float32)),
    )


def _tensor(values: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(values)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


class TaskBatches:
    """Endless training steps over the same rows, every row once an epoch.

    An epoch is shuffled, cut into pools of 64 batches, and each pool sorted by length and cut into batches of nearly
    one size, which are shuffled again: so little is padded, and a position is an epoch and a number of steps.

    Args:
        rows: of the train split.
        padding: id of the padding token.
        batch_size: rows per step at most, over all processes.
        seed: of the order.
        accumulation: pieces that a process reads its share of a step in.
        process: which of the processes this is.
        processes: how many there are.

    Raises:
        ValueError: a step would have fewer rows than pieces.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        padding: int,
        *,
        batch_size: int,
        seed: int,
        accumulation: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self._rows = rows
        self._padding = padding
        self._batch_size = batch_size
        self._seed = seed
        self._pieces = accumulation * processes
        self._own = range(process * accumulation, (process + 1) * accumulation)
        self._epoch = self._step = 0
        self._order = self._shuffled()
        fewest = min(len(batch) for batch in self._order)
        if fewest < self._pieces:
            raise ValueError(
                f"optimisation.accumulation: got {accumulation} on {processes} processes, expected at most "
                f"{fewest} pieces, as a step of the {len(rows)} training rows has as few"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every row is read once."""
        return len(self._order)

    def __next__(self) -> list[Batch]:
        if self._step == len(self._order):
            self._epoch, self._step = self._epoch + 1, 0
            self._order = self._shuffled()
        batch = collate([self._rows[row] for row in self._order[self._step]], self._padding)
        self._step += 1
        if self._pieces == 1:
            return [batch]
        return [piece_of(batch, slice(number, None, self._pieces)) for number in self._own]

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position."""
        self._epoch, self._step = state["epoch"], state["step"]
        self._order = self._shuffled()

    def _shuffled(self) -> list[np.ndarray]:
        """The rows of this epoch's batches, each the longest first."""
        random = np.random.default_rng([self._seed, self._epoch])
        rows = random.permutation(len(self._rows))
        lengths = np.array([len(row.ids) for row in self._rows])
        found: list[np.ndarray] = []
        for pool in _evenly(rows, self._batch_size * POOL_BATCHES):
            ordered = pool[np.argsort(-lengths[pool], kind="stable")]
            batches = _evenly(ordered, self._batch_size)
            found += [batches[number] for number in random.permutation(len(batches))]
        return found


def _evenly(rows: np.ndarray, most: int) -> list[np.ndarray]:
    """Rows in parts of nearly one size, none above `most`."""
    parts = -(-len(rows) // most)
    cuts = [len(rows) * number // parts for number in range(parts + 1)]
    return [rows[start:end] for start, end in itertools.pairwise(cuts)]


def prediction_batches(
    rows: Sequence[Row], padding: int, batch_size: int
) -> Iterator[tuple[list[Row], Batch]]:
    """Every row once, rows of like length together: the rows of a batch, and the batch."""
    ordered = sorted(rows, key=lambda row: -len(row.ids))
    for start in range(0, len(ordered), batch_size):
        chosen = ordered[start : start + batch_size]
        yield chosen, collate(chosen, padding)
