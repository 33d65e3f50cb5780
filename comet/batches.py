"""From documents to batches: tokenise, cut, group by length, mask, collate; the position can be saved and restored.

Sequences of similar length share a batch, so little is padded. Masking follows BERT (Devlin et al., 2019): of the
chosen tokens 80 % become the mask token, 10 % a random piece, 10 % stay. The choice is drawn from the seed and the
batch's number alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from comet.batch import Batch
from comet.corpus import Corpus, TextStream, open_corpus
from comet.recipe import CorpusRecipe

IGNORED_LABEL = -100
POOL_BATCHES = 16
TOKENISED_AT_ONCE = 64


def open_text(recipe: CorpusRecipe, seed: int) -> Corpus:
    """The corpus of a recipe."""
    return open_corpus(
        recipe.paths,
        languages=recipe.languages,
        temperature=recipe.sampling_temperature,
        seed=seed,
        held_out_per_language=recipe.held_out,
    )


@dataclass(frozen=True)
class Masking:
    """How tokens are chosen and hidden, and which of them the logits are matched on.

    Attributes:
        tokenizer: gives the mask, padding and special tokens.
        probability: share of ordinary tokens chosen; 0 leaves the text as it is.
        kd_tokens: `all` real tokens, or the `masked` (chosen) ones.
        seed: of the choice.
    """

    tokenizer: PreTrainedTokenizerFast
    probability: float
    kd_tokens: Literal["all", "masked"]
    seed: int

    def collate(self, sequences: Sequence[Sequence[int]], number: int) -> Batch:
        """Pad and mask token ids, special tokens included, into batch `number`."""
        lengths = np.array([len(ids) for ids in sequences])
        real = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(real.shape, self.tokenizer.pad_token_id, dtype=np.int64)
        ids[real] = np.concatenate([np.asarray(one, dtype=np.int64) for one in sequences])
        chosen = self._choose(ids, real, number)
        labels = np.where(chosen, ids, IGNORED_LABEL)
        matched = real if self.kd_tokens == "all" else chosen
        return Batch(
            input_ids=torch.from_numpy(self._hide(ids, chosen, number)),
            mask=None if real.all() else torch.from_numpy(real),
            kd_positions=torch.from_numpy(np.flatnonzero(matched)),
            labels=torch.from_numpy(labels),
            tokens=int(lengths.sum()),
            squared_lengths=int((lengths**2).sum()),
        )

    def _choose(self, ids: np.ndarray, real: np.ndarray, number: int) -> np.ndarray:
        draw = np.random.default_rng([self.seed, number, 0]).random(ids.shape)
        special = np.isin(ids, self.tokenizer.all_special_ids)
        return np.asarray((draw < self.probability) & real & ~special)

    def _hide(self, ids: np.ndarray, chosen: np.ndarray, number: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, number, 1])
        fate, piece = random.random(ids.shape), random.integers(len(self.tokenizer), size=ids.shape)
        hidden = np.where(chosen & (fate < 0.8), self.tokenizer.mask_token_id, ids)
        return np.where(chosen & (fate >= 0.9), piece, hidden)


def tokenise(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int, *, cut: bool = True
) -> list[list[int]]:
    """Token ids with special tokens, at most `max_length` each.

    Args:
        tokenizer: a fast tokenizer.
        texts: documents.
        max_length: tokens per sequence, special tokens included.
        cut: make several sequences of a longer document; otherwise keep its beginning only.
    """
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_length,
        return_overflowing_tokens=cut,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return [list(ids) for ids in encoded["input_ids"]]


class BatchStream:
    """Endless training batches from a text stream.

    Args:
        stream: documents.
        masking: how a batch is masked and collated.
        batch_size: sequences per batch.
        max_length: tokens per sequence, special tokens included.
    """

    def __init__(
        self, stream: TextStream, masking: Masking, batch_size: int, max_length: int
    ) -> None:
        self._stream = stream
        self._masking = masking
        self._batch_size = batch_size
        self._max_length = max_length
        self._number = 0
        self._left_over: list[list[int]] = []
        self._start_pool()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._pool:
            self._start_pool()
            self._fill_pool()
        batch = self._masking.collate(self._pool.pop(), self._number)
        self._number += 1
        self._taken += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON: where the current pool began and how many batches of it were taken."""
        return {"pool": self._pool_start, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position: the same batches follow."""
        start = state["pool"]
        self._stream.load_state_dict(start["stream"])
        self._number = start["number"]
        self._left_over = start["left_over"]
        self._start_pool()
        if state["taken"]:
            self._fill_pool()
            for _ in range(state["taken"]):
                self._pool.pop()
            self._number += state["taken"]
            self._taken = state["taken"]

    def _start_pool(self) -> None:
        self._pool: list[list[list[int]]] = []
        self._taken = 0
        self._pool_start = {
            "stream": self._stream.state_dict(),
            "number": self._number,
            "left_over": self._left_over,
        }

    def _fill_pool(self) -> None:
        """Tokenise enough for several batches, cut into batches of like length, shuffle those."""
        sequences = list(self._left_over)
        while len(sequences) < POOL_BATCHES * self._batch_size:
            texts = [next(self._stream).text for _ in range(TOKENISED_AT_ONCE)]
            sequences += tokenise(self._masking.tokenizer, texts, self._max_length)
        random = np.random.default_rng([self._masking.seed, self._number, 2])
        sequences = [sequences[index] for index in random.permutation(len(sequences))]
        whole = len(sequences) // self._batch_size * self._batch_size
        self._left_over = sequences[whole:]
        grouped = sorted(sequences[:whole], key=len)
        batches = [
            grouped[start : start + self._batch_size] for start in range(0, whole, self._batch_size)
        ]
        self._pool = [batches[index] for index in random.permutation(len(batches))]


def evaluation_batches(
    texts: Sequence[str], masking: Masking, batch_size: int, max_length: int
) -> list[Batch]:
    """Batches of the beginnings of some documents, masked the same way every time."""
    sequences = sorted(tokenise(masking.tokenizer, texts, max_length, cut=False), key=len)
    return [
        masking.collate(sequences[start : start + batch_size], number)
        for number, start in enumerate(range(0, len(sequences), batch_size))
    ]
